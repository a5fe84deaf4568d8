import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
from typer.testing import CliRunner

from realad_verl.backbones.pieces import token_pieces
from realad_verl.cli import app
from realad_verl.data.procedural import ProceduralDefects
from realad_verl.data.procedural.captions import PLACE_QUESTION, response
from realad_verl.data.prompts import hf_messages, prompt_text
from realad_verl.errors import UserError
from realad_verl.method.config import MethodConfig
from realad_verl.method.spans import parse_response, reasoning_tokens, word_tokens
from realad_verl.tiny import tiny_model_dir
from realad_verl.tiny.arch import GRID, IMAGE_SIZE, new_model
from realad_verl.tiny.build import build
from realad_verl.tiny.lessons import (
    CAPTION_1,
    CAPTION_2,
    NAMES,
    PLACES_TOLD,
    Lessons,
    NamingLessons,
    prompt_ids,
    to_patches,
    touched_places,
)
from realad_verl.tiny.report import domain_report, pixel_auroc
from realad_verl.tiny.rollout import TinyRollout
from realad_verl.tiny.tokenizer import TAGS, build_tokenizer, known_words
from realad_verl.tiny.train import LessonLoss, TrainConfig, fast_patch_embedding, warm_start


@pytest.fixture(scope="module")
def fresh():
    model, processor = new_model(0)
    return model.eval(), processor


@pytest.fixture(scope="module")
def shipped():
    folder = tiny_model_dir()
    return AutoModelForImageTextToText.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_any_text_survives_encoding(text):
    tokenizer = build_tokenizer()
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_every_known_word_is_one_token():
    tokenizer = build_tokenizer()
    assert [word for word in known_words() if len(tokenizer.encode(word)) != 1] == []
    assert all(len(tokenizer.encode(tag)) == 1 for tag in TAGS)


def test_tags_survive_decoding_and_the_method_finds_its_tokens():
    tokenizer, spans = build_tokenizer(), MethodConfig().spans
    text = response("There is a small dark scratch at the top left.", 1)
    ids = tokenizer.encode(text + "<|im_end|>")
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    parsed = parse_response(text, spans)
    assert parsed.well_formed and parsed.answer == "yes"
    pieces = token_pieces(tokenizer, tokenizer.encode(text))
    assert [pieces[i].strip() for i in reasoning_tokens(pieces, spans)] == text[8:55].replace(".", " .").split()
    prompt = token_pieces(tokenizer, tokenizer.encode(prompt_text()))
    found = word_tokens(prompt, MethodConfig().readout.words)
    assert [prompt[i].strip() for i in found] == ["defects", "anomalies"]


def test_the_shipped_model_is_what_the_code_describes(shipped, fresh):
    model, processor = shipped
    for part in ("text_config", "vision_config"):
        ours, described = (m.config.to_dict()[part] | {"dtype": None, "architectures": None} for m in (model, fresh[0]))
        assert ours == described
    assert processor.tokenizer.get_vocab() == build_tokenizer().get_vocab()
    assert len(AutoTokenizer.from_pretrained(tiny_model_dir())) == model.config.text_config.vocab_size
    assert model.lm_head.weight.shape[0] == len(processor.tokenizer)
    assert sum(p.numel() for p in model.parameters()) <= 3_000_000
    assert sum(path.stat().st_size for path in tiny_model_dir().iterdir()) <= 8e6


@pytest.mark.parametrize("size", [(168, 168), (420, 420), (64, 64)])
def test_every_square_image_becomes_12_x_12_tokens(fresh, size):
    _, processor = fresh
    text = processor.apply_chat_template(hf_messages(), add_generation_prompt=True, tokenize=False)
    inputs = processor(text=[text], images=[Image.new("RGB", size)], return_tensors="pt")
    assert inputs["image_grid_thw"].tolist() == [[1, GRID, GRID]]
    assert inputs["input_ids"][0].tolist() == prompt_ids(processor)


def test_patches_equal_the_image_processors(fresh):
    image = torch.from_numpy(ProceduralDefects(IMAGE_SIZE)[1].image)
    wanted = fresh[1].image_processor(images=[Image.fromarray(image.numpy())], return_tensors="pt").pixel_values
    assert torch.allclose(to_patches(image[None], fresh[1]), wanted, atol=1e-5)


def test_fast_patch_embedding_equals_the_stock_one(fresh):
    model, processor = fresh
    patches = to_patches(torch.from_numpy(ProceduralDefects(IMAGE_SIZE)[1].image)[None], processor)
    assert torch.allclose(fast_patch_embedding(model)(patches), model.model.visual.patch_embed(patches), atol=1e-4)


def test_packed_lessons_equal_separate_conversations(fresh):
    """The answers' logits in a packed lesson are those of each conversation on its own."""
    model, processor = fresh
    lesson_loss = LessonLoss(model, processor)
    lessons = Lessons(processor.tokenizer, lesson_loss.sheet, seed=0, length=4, informative_weight=3.0)
    images, ids, weights, _ = (torch.stack(c) for c in zip(*[lessons[1], lessons[2]], strict=True))
    seen = []
    hook = model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        lesson_loss(images, ids, weights, None)
        hook.remove()
        part = lesson_loss.sheet.part_T[len(lesson_loss.sheet.prefix) :]
        answered = part[(part == PLACES_TOLD) | (part >= CAPTION_1)]
        for question, which in ((PLACE_QUESTION, PLACES_TOLD), (None, CAPTION_1), (None, CAPTION_2)):
            prompt = torch.tensor(prompt_ids(processor, question)).expand(2, -1)
            tokens = torch.cat([prompt, ids[:, part == which]], 1)
            alone = model(
                input_ids=tokens,
                attention_mask=torch.ones_like(tokens),
                mm_token_type_ids=(tokens == model.config.image_token_id).long(),
                pixel_values=to_patches(images, processor),
                image_grid_thw=lesson_loss.grid.expand(2, -1),
            ).logits[:, prompt.shape[1] - 1 : -1]
            assert torch.allclose(alone, seen[0][:, answered == which], atol=1e-4)


def test_lessons_weigh_what_the_image_decides(fresh):
    _, processor = fresh
    sheet = LessonLoss(*fresh).sheet
    _, ids, weights, _ = Lessons(processor.tokenizer, sheet, seed=0, length=9, informative_weight=3.0)[1]
    words = {processor.tokenizer.decode([i]).strip() for i in ids[weights == 3.0].tolist()}
    facts = ProceduralDefects(IMAGE_SIZE, "source", 0)[1].facts
    assert {"yes", *str(facts.defect_type).split(), *facts.place.split()} <= words
    assert "the" not in words and not weights[ids == processor.tokenizer.pad_token_id].any()


def test_touched_places():
    mask = np.zeros((90, 90), bool)
    assert touched_places(mask) == set()
    mask[10:50, 5:10] = True
    assert touched_places(mask) == {"top left", "left"}


def test_warm_start_learns_and_is_repeatable(tmp_path):
    """A few steps already lower the loss, the same way twice; the stock patch embedding is back afterwards."""
    losses = []
    for _ in range(2):
        model, processor = new_model(1)
        captions = []
        cfg = TrainConfig(steps=6, naming_steps=3, joint_steps=1, batch=4, warmup=2, seed=1)
        warm_start(model, processor, cfg, lambda step, losses, kept=captions: kept.append(losses.get("captions")))
        losses.append(captions)
        assert "forward" not in vars(model.model.visual.patch_embed)
    assert losses[0] == losses[1] and losses[0][:3] == [None] * 3
    assert losses[0][-1] < losses[0][3] - 0.5


def test_build_writes_a_loadable_model_and_its_card(tmp_path):
    report = build(
        tmp_path / "model", TrainConfig(steps=2, naming_steps=2, joint_steps=2, batch=2, warmup=1), report_images=2
    )
    card = (tmp_path / "model" / "README.md").read_text()
    assert (
        "It is not" in card
        and f"{report['parameters']:,}" in card
        and "--naming-steps 2 --steps 2 --joint-steps 2 --batch 2 --seed 0" in card
    )
    AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="not empty"):
        build(tmp_path / "model", TrainConfig(steps=2))


def test_rollout_samples_what_the_model_predicts(fresh):
    """Greedy decoding with the cache takes the argmax of a full forward, and is what `generate` gives."""
    model, processor = fresh
    rollout = TinyRollout(model, processor)
    images = torch.stack([torch.from_numpy(ProceduralDefects(IMAGE_SIZE)[i].image) for i in range(2)])
    greedy = rollout.sample(images, temperature=0, max_tokens=6)
    with torch.no_grad():
        logits, ids = rollout.logits(images, greedy)
    assert torch.equal(logits.argmax(-1), ids)
    text = processor.apply_chat_template(hf_messages(), add_generation_prompt=True, tokenize=False)
    inputs = processor(text=[text], images=[Image.fromarray(images[0].numpy())], return_tensors="pt")
    generated = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert generated.tolist() == greedy[0]
    many = rollout.sample(images, n=3, max_tokens=6, seed=0)
    assert len(many) == 6 and many == rollout.sample(images, n=3, max_tokens=6, seed=0)


def test_the_shipped_model_can_talk(shipped):
    """The numbers of its card hold on a small sample: well above chance in its own domain, always in the format."""
    report = domain_report(*shipped, "source", 64)
    assert report.accuracy >= 0.72
    assert report.format >= 0.95
    assert report.map_auroc["all"] > report.center_auroc + 0.05
    assert report.distinct > 2


def test_pixel_auroc():
    mask = np.array([[True, False], [False, False]])
    assert pixel_auroc(np.array([[3.0, 1.0], [2.0, 0.0]]), mask) == 1.0
    assert pixel_auroc(np.array([[1.0, 1.0], [1.0, 1.0]]), mask) == 0.5
    assert pixel_auroc(np.array([[1.0, 1.0], [2.0, 0.0]]), mask) == pytest.approx(0.5)


def test_command_line(tmp_path):
    runner = CliRunner()
    made = runner.invoke(
        app, ["tiny", "images", "--out", str(tmp_path / "i"), "--count", "4", "--size", "64", "--json"]
    )
    assert made.exit_code == 0 and json.loads(made.stdout) == {"normal": 2, "anomalous": 2, "masks": 2}
    assert runner.invoke(app, ["tiny", "path"]).stdout.strip() == str(tiny_model_dir())
    wrong = runner.invoke(app, ["tiny", "images", "--out", str(tmp_path / "j"), "--count", "0"])
    assert isinstance(wrong.exception, UserError)


def test_naming_lessons_name_the_last_defect_on_a_token():
    lessons = NamingLessons(seed=5, length=3, defects=3)
    assert len(lessons) == 3
    for index in range(3):
        image, names = lessons[index]
        _, surface, defects = ProceduralDefects(IMAGE_SIZE, "source", 5).crowded(index, 3)
        wanted = np.full((12, 12), NAMES.index(surface))
        for kind, mask in defects:
            for row, column in np.ndindex(12, 12):
                if mask[row * 14 : row * 14 + 14, column * 14 : column * 14 + 14].mean() > 0.05:
                    wanted[row, column] = NAMES.index(kind)
        assert image.shape == (168, 168, 3) and (names.view(12, 12).numpy() == wanted).all()
