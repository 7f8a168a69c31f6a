"""Hostile tokenizers: a ModelError, in bounded time and memory, and never the end of the worker."""

from __future__ import annotations

import errno
import json
import random
from typing import TYPE_CHECKING, Any

import pytest
from tokenizers import Tokenizer, decoders, models

from helix_jobs.engine.loading import model_source
from helix_jobs.engine.loading.tokenizer_trial import try_tokenizer
from helix_jobs.engine.text import bounded_process
from helix_jobs.engine.text.bounded_process import ProcessLimits
from helix_jobs.engine.text.decoders import decoder_fault
from helix_jobs.engine.text.prompt_encoder import PromptLimits
from helix_jobs.errors import EngineError, ExhaustedError, ModelError
from tests.unit.engine.model_files import load, save_checkpoint, write_gguf
from tests.unit.engine.opened_engine import opened
from tests.unit.engine.tiny_models import request, tiny_engine

if TYPE_CHECKING:
    from pathlib import Path

# Soon over, and far more than the tokenizers here need.
SHORT = PromptLimits(seconds=2.0, process=ProcessLimits(memory_bytes=256 * 1024**2, wall_factor=120))
REPLACE = {"type": "Replace", "pattern": {"String": "a"}, "content": "a"}


def edit_tokenizer(folder: Path, **changes: Any) -> Path:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def merging(prefix: str, right: str) -> dict[str, Any]:
    vocabulary = {"a": 0, right: 1, "a" + right.removeprefix(prefix): 2}
    return {"type": "BPE", "vocab": vocabulary, "merges": [["a", right]], "continuing_subword_prefix": prefix}


STRIP = {"type": "Strip", "content": " "}
CTC = {"type": "CTC", "pad_token": "", "word_delimiter_token": "|", "cleanup": True}
CHARSMAP = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
GROWING = {"type": "Sequence", "normalizers": [REPLACE | {"content": "a" * 200}] * 5}
FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "special"), False)


@pytest.mark.parametrize("token_id", [10**9, 2**31, 2**63, -1])
@pytest.mark.parametrize("place", ["vocab", "added_tokens", "added_tokens_decoder", "added_tokens.json"])
def test_a_token_far_beyond_the_vocabulary(tmp_path: Path, place: str, token_id: int) -> None:
    folder = save_checkpoint(tmp_path)
    path = folder / ("tokenizer_config.json" if place == "added_tokens_decoder" else "tokenizer.json")
    document = json.loads(path.read_text())
    token = {"id": token_id, "content": "<far>", "special": True, "normalized": False}
    token |= dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
    if place == "vocab":
        document["model"]["vocab"]["a"] = token_id
    elif place == "added_tokens":
        document["added_tokens"].append(token)
    elif place == "added_tokens_decoder":
        document["added_tokens_decoder"] = {str(token_id): {"content": "<far>"}}
    else:
        (folder / place).write_text(json.dumps({"<far>": token_id}))
    path.write_text(json.dumps(document))
    with pytest.raises(ModelError, match=f"its tokenizer has the token id {token_id} among"):
        load(folder)


def name_id(folder: Path, key: str) -> Path:
    path = folder / "tokenizer_config.json"
    named = {"added_tokens_decoder": {key: {"content": "<odd>", "special": True}}}
    path.write_text(json.dumps(json.loads(path.read_text()) | named))
    return folder


@pytest.mark.parametrize("key", ["--5", "-", "", "9" * 5_000, "x"])
def test_an_added_token_whose_id_is_no_number(tmp_path: Path, key: str) -> None:
    """Python's own error over it would be a traceback; transformers has its words."""
    with pytest.raises(ModelError, match="a tokenizer that cannot be read"):
        load(name_id(save_checkpoint(tmp_path), key))


@pytest.mark.parametrize("key", ["1_000_000_000", " 1000000000", "\u0661" * 10, "9" * 40])
def test_an_added_token_whose_id_is_written_oddly(tmp_path: Path, key: str) -> None:
    """What transformers takes for a number is one."""
    with pytest.raises(ModelError, match="its tokenizer has the token id"):
        load(name_id(save_checkpoint(tmp_path), key))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalizer": CHARSMAP}, r"makes the tokenizers library panic \(Precompiled"),
        ({"model": merging("####", "b")}, r"makes the tokenizers library panic \("),
        ({"model": merging("#", "éé")}, r"the process that tried (crashed|ended)"),
    ],
    ids=["charsmap", "panic", "abort"],
)
def test_a_tokenizer_that_cannot_be_read_without_a_panic(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """Some panics end the process that reads it, so it is not the worker's that does."""
    folder = edit_tokenizer(save_checkpoint(tmp_path), **changes)
    with pytest.raises(ModelError, match=message):
        load(folder)


@pytest.mark.parametrize("place", ["tokenizer.json", "added_tokens_decoder", "added_tokens.json", "bos_token"])
def test_an_added_token_that_grows_while_it_is_read(tmp_path: Path, place: str) -> None:
    """The normalizer makes 320 thousand million characters of it."""
    folder = edit_tokenizer(save_checkpoint(tmp_path), normalizer=GROWING)
    size = len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])
    token = FLAGS | {"content": "aaa", "normalized": True}
    if place == "tokenizer.json":
        edit_tokenizer(folder, added_tokens=[token | {"id": size}])
    elif place == "added_tokens.json":
        (folder / place).write_text(json.dumps({"aaa": size}))
    else:
        path = folder / "tokenizer_config.json"
        named = {place: token | {"__type": "AddedToken"}} if place == "bos_token" else {place: {str(size): token}}
        path.write_text(json.dumps(json.loads(path.read_text()) | named))
    with pytest.raises(ModelError, match=r"the process that tried (took|crashed|ended)|needs too much memory"):
        try_tokenizer("m", folder, SHORT)


def test_a_tokenizer_of_another_name_is_not_read_untried(tmp_path: Path) -> None:
    """transformers would take it in place of the other."""
    folder = save_checkpoint(tmp_path)
    sound = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.4.0.json").write_text(json.dumps(sound | {"normalizer": CHARSMAP}))
    path = folder / "tokenizer_config.json"
    names = {"fast_tokenizer_files": ["tokenizer.json", "tokenizer.4.0.json"]}
    path.write_text(json.dumps(json.loads(path.read_text()) | names))
    with pytest.raises(ModelError, match=r"names other files than tokenizer.json \(fast_tokenizer_files\); remove"):
        load(folder)


@pytest.mark.parametrize("kind", ["directory", "gguf"])
def test_a_panic_in_the_worker_is_a_model_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """The second line: what only transformers' way of reading brings about."""
    folder = edit_tokenizer(save_checkpoint(tmp_path), normalizer=CHARSMAP)
    monkeypatch.setattr(model_source, "try_tokenizer", lambda *_: None)
    if kind == "gguf":
        write_gguf(tmp_path / "m.gguf")
        text = (folder / "tokenizer.json").read_text()
        monkeypatch.setattr(model_source, "build_gguf_tokenizer", lambda *_: Tokenizer.from_str(text))
    with pytest.raises(ModelError, match=r"a tokenizer that cannot be read \(LibraryPanicError: Precompiled"):
        load(tmp_path / "m.gguf" if kind == "gguf" else folder)


def test_a_tokenizer_that_panics_over_the_text_of_the_trial_pass(tmp_path: Path) -> None:
    """Before float16 is used a fixed text is tokenised, as prompts are: not by the worker. All others are emptied."""
    emptied = REPLACE | {"pattern": {"Regex": "^(?!Question)[^\\x00]*"}, "content": ""}
    panicking = {"type": "Precompiled", "precompiled_charsmap": "BAAAAAAAAAAA"}
    normalizer = {"type": "Sequence", "normalizers": [emptied, panicking]}
    folder = edit_tokenizer(save_checkpoint(tmp_path), normalizer=normalizer)
    with pytest.raises(ModelError, match=r"its tokenizer fails on a plain text \(.*LibraryPanicError"):
        load(folder, dtype="float16")


def test_a_machine_without_processes_is_not_the_tokenizer_s_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    folder = save_checkpoint(tmp_path)
    monkeypatch.setattr(bounded_process.subprocess, "Popen", exhausted)
    with pytest.raises(ExhaustedError, match="raise the limit"):
        load(folder)


def test_files_beside_a_sound_tokenizer_are_not_its_fault(tmp_path: Path) -> None:
    """Nor does the trial leave a trace in any of them."""
    folder = save_checkpoint(tmp_path)
    (folder / "added_tokens.json").write_text("[" * 100_000)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    try_tokenizer("m", folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        (REPLACE | {"pattern": {"Regex": "(a+)+b"}}, "decodes by a regular expression"),
        (REPLACE | {"content": "aaaa"}, "decodes by replacing a text with a longer one"),
        ({"type": "Sequence", "decoders": [{"type": "Fuse"}, REPLACE | {"content": "aa"}]}, "with a longer one"),
        (STRIP | {"start": 0, "stop": 64}, "decodes by cutting off the end of each token"),
        (STRIP | {"start": 1, "stop": 1}, "decodes by cutting off the end of each token"),
        ({"type": "BPEDecoder", "suffix": ""}, "decodes by replacing an empty text"),
        (CTC | {"word_delimiter_token": ""}, "decodes by replacing an empty text"),
        ({"type": "Sequence", "decoders": [{"type": "Fuse"}, CTC | {"word_delimiter_token": ""}]}, "an empty text"),
        ({"type": "Sequence", "decoders": [REPLACE] * 17}, "decodes in more than 16 steps"),
    ],
)
def test_a_tokenizer_whose_decoding_is_not_bounded_is_refused(tmp_path: Path, decoder: dict, message: str) -> None:
    folder = save_checkpoint(tmp_path)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"decoder": decoder}))
    with pytest.raises(ModelError, match=f"its tokenizer .*{message}, which is not served"):
        load(folder)


# SentencePiece's, as Llama 2 and Phi-3 have it; then what CTC, CLIP, BERT and XLM-R models have.
SOUND_DECODERS = [
    [
        *(REPLACE | {"pattern": {"String": "\u2581"}}, {"type": "ByteFallback"}, {"type": "Fuse"}),
        STRIP | {"start": 1, "stop": 0},
    ],
    [CTC, {"type": "BPEDecoder", "suffix": "</w>"}, {"type": "WordPiece", "prefix": "##", "cleanup": True}],
    [{"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}],
]


@pytest.mark.parametrize("steps", SOUND_DECODERS, ids=["SentencePiece", "suffixes", "Metaspace"])
def test_a_decoder_that_models_in_use_have_is_served(steps: list[dict[str, Any]]) -> None:
    assert decoder_fault({"type": "Sequence", "decoders": steps}) is None


@pytest.mark.parametrize("seed", range(40))
def test_what_is_served_decodes_anything_to_a_text_no_longer_than_its_tokens(seed: int) -> None:
    """Any order of steps; WordPiece writes a space before each token, at each of at most 16 steps."""
    dice = random.Random(seed)
    steps = [step for steps in SOUND_DECODERS for step in steps] + [
        *({"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}, REPLACE),
        *(REPLACE | {"pattern": {"String": ""}, "content": ""}, STRIP | {"start": 2**40, "stop": 0}),
        *({"type": "WordPiece", "prefix": "", "cleanup": False}, {"type": "BPEDecoder", "suffix": " "}),
    ]
    decoder = {"type": "Sequence", "decoders": dice.choices(steps, k=dice.randrange(1, 17))}
    assert decoder_fault(decoder) is None
    vocabulary = {"<unk>": 0, "": 1, " ": 2, "a": 3, "\u2581a": 4, "<0xE4>": 5, "\u0120\u20ac": 6, "|": 7, "</w>": 8}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>")).to_str()
    backend = Tokenizer.from_str(json.dumps(json.loads(made) | {"decoder": decoder}))
    for count in (0, 1, 2, 50):
        token_ids = dice.choices(range(len(vocabulary)), k=count)
        text = backend.decode(token_ids)
        assert len(text) <= sum(len(token) for token in vocabulary) * count + 16 * count


@pytest.mark.parametrize("stop", [(), ("zz",)], ids=["at the end", "at a stop string"])
def test_a_panic_over_an_output_fails_that_request_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, stop: tuple[str, ...]
) -> None:
    """Helix' own record has the panic's kind, not its words: they may quote the answer."""
    backend = Tokenizer(models.WordLevel({" ": 0}, unk_token=" "))
    backend.decoder = decoders.Strip(" ", 0, 64)
    engine = tiny_engine()

    def decode(token_ids: list[int], **_: object) -> str:
        return "the prompt" if token_ids == [7] else backend.decode([0])

    with monkeypatch.context() as patched:
        patched.setattr(opened(engine).codec._tokenizer, "decode", decode)
        (bad,) = engine.generate([request("bad", [5, 6, 7], max_tokens=4, ignore_eos=True, stop=stop)])
    assert isinstance(bad.error, EngineError)
    assert str(bad.error) == "the output cannot be decoded: LibraryPanicError"
    assert "the output of request bad cannot be decoded" in caplog.text
    assert "out of bounds" not in caplog.text
    (good,) = engine.generate([request("good", [5, 6, 7], max_tokens=4, ignore_eos=True, stop=stop)])
    assert good.error is None
    engine.check_integrity()


def test_a_token_as_long_as_a_book_is_refused(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path)
    path = folder / "tokenizer.json"
    document = json.loads(path.read_text())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    document["added_tokens"].append({"id": 5, "content": "z" * 20_000} | flags)
    path.write_text(json.dumps(document))
    with pytest.raises(ModelError, match="has a token of 20,000 characters, which is not served"):
        load(folder)
