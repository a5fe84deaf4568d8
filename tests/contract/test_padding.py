"""What stands in a dropped response's place: another sample's prompt and image, one end token, no weight."""

import torch


def test_the_copy_keeps_its_image(monkeypatch):
    monkeypatch.setenv("VERL_PLATFORM", "cpu")
    import verl  # noqa: F401  (loads the plugin)
    from verl.trainer.ppo.padding_utils import construct_minimal_padding_template

    prompts, responses = torch.arange(10, 310), torch.arange(1, 6)
    source = {
        "prompts": prompts,
        "responses": responses,
        "input_ids": torch.cat([prompts, responses]),
        "position_ids": torch.arange(4 * 305).view(4, 305),
        "multi_modal_inputs": {"pixel_values": torch.ones(3, 2)},
    }
    sample, tag = construct_minimal_padding_template(source, {"seq_len": 305}, eos_token_id=7)
    assert torch.equal(sample["prompts"], prompts) and sample["responses"].tolist() == [7]
    assert torch.equal(sample["input_ids"], torch.cat([prompts, torch.tensor([7])]))
    assert torch.equal(sample["position_ids"], source["position_ids"][:, :301])
    assert sample["multi_modal_inputs"] is source["multi_modal_inputs"]
    assert sample["attention_mask"].tolist() == [1] * 301
    assert not sample["response_mask"].any() and not sample["rm_scores"].any()
    assert tag == {"is_padding": True, "prompt_len": 300, "response_len": 1, "seq_len": 301}
