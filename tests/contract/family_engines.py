"""One rank of the engine with tiny models of families, without vLLM. Run by test_family_engines.py.

usage: family_engines.py OUT FOLDER MODE FAMILY... (MODE: padded, packed or lora), ranks in the environment
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("VERL_PLATFORM", "cpu")

import torch
from engine_rank import RESPONSES, build_engine, make_batch, update
from family_samples import flags, images, rendered, sample
from flash_stand_in import install

from realad_verl.backbones import BACKBONES


def run(folder: Path, mode: str, family: str) -> dict:
    import torch.distributed as dist

    from realad_verl.verl_ext.repairs import position_ids
    from realad_verl.verl_ext.train.engine import REQUEST_KEY, make_request

    lora = {"lora_rank": 8, "merge": True, "exclude": f".*({'|'.join(BACKBONES[family].beside)}).*"}
    engine = build_engine({"model": str(folder), "packed": mode == "packed"} | (lora if mode == "lora" else {}))
    rank, world = engine.get_data_parallel_rank(), engine.get_data_parallel_size()
    processor, tokenizer = engine.model_config.processor, engine.model_config.tokenizer
    responses = [tokenizer.encode(RESPONSES[i % 3], add_special_tokens=False) for i in range(4)]
    prompts = [rendered(processor, picture) for picture in images()]
    samples = [sample(processor, prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
    mine = samples[rank * len(samples) // world : (rank + 1) * len(samples) // world]
    settings = flags(tokenizer, packed=mode == "packed", micro=2)
    batch = make_batch(mine, **settings, **{REQUEST_KEY: make_request({}, detail=True)})
    with engine.eval_mode():
        output = engine.infer_batch(position_ids.rebuild(batch))["model_output"]
    result = {key: [value.clone() for value in values.unbind()] for key, values in output.items()}
    result["rank"] = rank
    before = {n: p.full_tensor().detach().clone() for n, p in engine.module.named_parameters() if p.requires_grad}
    first = rank * len(samples) // world
    after = update(engine, mine, settings, {"log_probs": result["log_probs"]}, first, world)
    result["trained"] = sorted(before)
    result["still"] = [name for name, value in before.items() if torch.equal(after[name], value)]
    result["sent"] = {n: w.float().sum().item() for n, w in engine.get_per_tensor_param()[0]}
    dist.barrier()
    return result


def main() -> None:
    out, folder, mode, *families = sys.argv[1:]
    torch.manual_seed(0)
    if mode == "packed":
        install()
    results = {family: run(Path(folder) / family, mode, family) for family in families}
    torch.save(results, f"{out}.{os.environ['RANK']}")


if __name__ == "__main__":
    main()
