"""GGUF files of five architectures: written, read by real llama.cpp and by ourselves, and the same predictions."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from apportion.core.device import place
from apportion.core.errors import ArtifactCorruptError, ArtifactError, InputError
from apportion.formats.gguf_file import Field, TensorEntry, file_bytes, write
from apportion.models.gguf.load import load_gguf, load_gguf_tokenizer
from apportion.models.gguf.source import FolderSource, file_source, folder_source
from apportion.models.gguf.written import write_readable
from apportion.models.load import load_staged
from apportion.models.pretrained import load_tokenizer
from tests.llama_cpp import LlamaCpp
from tests.tiny_gguf_models import KINDS, make_kind
from tests.tiny_models import make_text

CPU = place("cpu", "float32")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[FolderSource, Any, Path]]:
    """A function kind -> its source, its tokenizer, and a GGUF file of it in float32."""
    made: dict[str, tuple[FolderSource, Any, Path]] = {}

    def make(kind: str) -> tuple[FolderSource, Any, Path]:
        if kind not in made:
            folder = make_kind(tmp_path_factory.mktemp(kind), kind)
            tokenizer = load_tokenizer(str(folder))
            source = folder_source(load_staged(str(folder), CPU), tokenizer, str(folder))
            made[kind] = (source, tokenizer, plain_file(source, folder / "plain.gguf"))
        return made[kind]

    return make


def plain_file(source: FolderSource, path: Path, kind: str = "F32") -> Path:
    """Every tensor as it is."""
    entries = {name: TensorEntry(kind if len(shape) > 1 else "F32", shape) for name, shape in source.shapes.items()}
    dtypes = {"F32": torch.float32, "F16": torch.float16}
    size = write(
        path, source.fields, entries, lambda name: source.weight(name).to(dtypes[entries[name].type]).numpy().tobytes()
    )
    assert size == file_bytes(source.fields, entries) == path.stat().st_size
    return path


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return np.asarray(torch.from_numpy(logits).log_softmax(-1))


@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_predicts_the_same(kind: str, sources: Callable[[str], tuple[FolderSource, Any, Path]]) -> None:
    source, tokenizer, path = sources(kind)
    ids = tokenizer(make_text(20)).input_ids[:48]
    runner = LlamaCpp(path, 48)
    theirs = log_softmax(runner.logits(ids))
    runner.close()
    with torch.inference_mode():
        own = source.staged.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1).numpy()
    kl = (np.exp(own) * (own - theirs)).sum(-1)
    assert kl.max() < 2e-3, f"{kind}: llama.cpp computes something else"
    assert np.abs(own - theirs).mean() < 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_reading_a_file_back_gives_the_model(
    kind: str, sources: Callable[[str], tuple[FolderSource, Any, Path]]
) -> None:
    source, tokenizer, path = sources(kind)
    again = load_gguf(path, CPU)
    ids = torch.tensor([tokenizer(make_text(20)).input_ids[:40]])
    with torch.inference_mode():
        own, theirs = (staged.model(input_ids=ids).logits for staged in (source.staged, again))
    torch.testing.assert_close(theirs, own, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_tokenizers_agree(kind: str, sources: Callable[[str], tuple[FolderSource, Any, Path]]) -> None:
    _, tokenizer, path = sources(kind)
    runner = LlamaCpp(path, 32)
    texts = [
        *make_text(40).split(". "),
        "  two  spaces",
        "tabs\tand\nlines\n\n",
        "numbers 12345 3.14",
        "Größe, naïve",
        "",
    ]
    for text in texts:
        assert runner.tokenize(text) == tokenizer(text, add_special_tokens=False).input_ids, text
        assert runner.tokenize(text, special=True) == tokenizer(text).input_ids, text
    runner.close()


def test_heads_of_another_size_than_the_hidden_states_are_told(tmp_path: Path) -> None:
    folder = make_kind(tmp_path / "llama", "llama", head_dim=32)
    tokenizer = load_tokenizer(str(folder))
    source = folder_source(load_staged(str(folder), CPU), tokenizer, str(folder))
    path = plain_file(source, tmp_path / "plain.gguf")
    ids = tokenizer(make_text(20)).input_ids[:32]
    runner = LlamaCpp(path, 32)
    with torch.inference_mode():
        own, again = (
            staged.model(input_ids=torch.tensor([ids])).logits[0] for staged in (source.staged, load_gguf(path, CPU))
        )
    torch.testing.assert_close(again, own, atol=1e-4, rtol=1e-4)
    assert np.abs(log_softmax(own.numpy()) - log_softmax(runner.logits(ids))).mean() < 0.02
    runner.close()


def test_llama_cpp_reads_our_tokenizer_back(sources: Callable[[str], tuple[FolderSource, Any, Path]]) -> None:
    _, tokenizer, path = sources("qwen3")
    again = load_gguf_tokenizer(path)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again(make_text(9)).input_ids == tokenizer(make_text(9)).input_ids


def test_a_half_precision_file_is_a_source_and_a_quantized_one_is_not(
    sources: Callable[[str], tuple[FolderSource, Any, Path]], tmp_path: Path
) -> None:
    source, _, _ = sources("llama")
    again = file_source(plain_file(source, tmp_path / "half.gguf", "F16"))
    assert {name: field.value for name, field in again.fields.items()} == {
        name: pytest.approx(field.value) if field.kind == "FLOAT32" else field.value
        for name, field in source.fields.items()
    }
    assert again.modules == source.modules
    for name in source.shapes:
        torch.testing.assert_close(again.weight(name).float(), source.weight(name).half().float())
    low = tmp_path / "low.gguf"
    entries = {name: TensorEntry("Q4_0" if len(s) > 1 else "F32", s) for name, s in source.shapes.items()}
    write(low, source.fields, entries, lambda name: bytes(entries[name].nbytes))
    with pytest.raises(InputError, match=r"quantized already \(Q4_0\)[\s\S]*--allow-requantize"):
        file_source(low)
    assert file_source(low, allow_requantize=True).file.types["blk.0.attn_q.weight"] == "Q4_0"


def laid_out(path: Path, copy: Path, alignment: int = 32, *, big: bool = False) -> Path:
    """The same file with another alignment or byte order, by gguf's own writer."""
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(copy, "llama", endianess=gguf.GGUFEndian.BIG if big else gguf.GGUFEndian.LITTLE)
    if alignment != 32:
        writer.add_custom_alignment(alignment)
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            kinds = field.types
            writer.add_key_value(
                name, field.contents(), kinds[0], kinds[-1] if kinds[0] == gguf.GGUFValueType.ARRAY else None
            )
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return copy


def test_a_source_of_another_alignment_is_written_with_ours(
    sources: Callable[[str], tuple[FolderSource, Any, Path]], tmp_path: Path
) -> None:
    source, _, path = sources("llama")
    odd = file_source(laid_out(path, tmp_path / "odd.gguf", 128))
    assert odd.file.plain["general.alignment"] == 128
    again = file_source(plain_file(odd, tmp_path / "again.gguf"))
    assert "general.alignment" not in odd.fields
    for name in source.shapes:
        assert torch.equal(again.weight(name), file_source(path).weight(name)), name


def test_a_file_that_would_not_be_read_as_written_gets_no_name(
    sources: Callable[[str], tuple[FolderSource, Any, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, _, _ = sources("llama")
    entries = {name: TensorEntry("F32", shape) for name, shape in source.shapes.items()}
    out, earlier = tmp_path / "model.gguf", b"an earlier file"
    out.write_bytes(earlier)
    odd = {"general.alignment": Field("UINT32", 64), **source.fields}
    with pytest.raises(ArtifactError, match=r"model\.gguf: was written and cannot be read again"):
        write_readable(out, odd, entries, lambda name: source.weight(name).float().numpy().tobytes())
    first = next(iter(entries))
    with monkeypatch.context() as patch:
        patch.setattr("apportion.models.gguf.written.write", lambda path, f, e, d, check: write(
            path, f, {name: entry for name, entry in e.items() if name != first}, d, check))  # fmt: skip
        with pytest.raises(ArtifactError, match=f"other tensors than were written: {first}"):
            write_readable(out, source.fields, entries, lambda name: source.weight(name).float().numpy().tobytes())
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]
    assert out.read_bytes() == earlier


def test_files_that_are_not_whole_are_refused(
    sources: Callable[[str], tuple[FolderSource, Any, Path]], tmp_path: Path
) -> None:
    source, _, path = sources("llama")
    cases = {
        "split": ({**source.fields, "split.count": Field("UINT16", 3), "split.no": Field("UINT16", 0)}, {}),
        "vocabulary": (source.fields, {}),
    }
    for name, (fields, entries) in cases.items():
        write(tmp_path / f"{name}.gguf", fields, entries, lambda _: b"")
    with pytest.raises(InputError, match="part 1 of 3 of a split file"):
        file_source(tmp_path / "split.gguf")
    with pytest.raises(InputError, match="holds a vocabulary and no weights"):
        file_source(tmp_path / "vocabulary.gguf")
    (tmp_path / "cut.gguf").write_bytes(path.read_bytes()[:-5000])
    (tmp_path / "text.gguf").write_text("not a model at all, only words and words and words")
    for name in ("cut", "text"):
        with pytest.raises(ArtifactCorruptError, match=rf"{name}\.gguf"):
            file_source(tmp_path / f"{name}.gguf")
    with pytest.raises(InputError, match="no such file"):
        file_source(tmp_path / "absent.gguf")


def test_another_byte_order_is_refused(
    sources: Callable[[str], tuple[FolderSource, Any, Path]], tmp_path: Path
) -> None:
    _, _, path = sources("llama")
    big = laid_out(path, tmp_path / "big.gguf", big=True)
    for use in (file_source, lambda path: load_gguf(path, CPU)):
        with pytest.raises(InputError, match=r"big\.gguf: is of the other byte order[\s\S]*gguf-convert-endian"):
            use(big)
    assert file_source(laid_out(path, tmp_path / "little.gguf")).shapes == file_source(path).shapes


def test_what_is_no_language_model_is_refused(
    sources: Callable[[str], tuple[FolderSource, Any, Path]], tmp_path: Path
) -> None:
    source, _, _ = sources("llama")
    lora = {f"blk.0.attn_q.weight.lora_{part}": torch.ones(4, 64) for part in "ab"}
    fields = {**source.fields, "general.type": Field("STRING", "adapter"), "adapter.type": Field("STRING", "lora")}
    for name, own in (("adapter", fields), ("headless", source.fields)):
        entries = {key: TensorEntry("F32", (4, 64)) for key in lora}
        write(tmp_path / f"{name}.gguf", own, entries, lambda key: lora[key].numpy().tobytes())
    expected = r"adapter\.gguf: is no .*general.type is 'adapter', expected 'model', has no token_embd\.weight"
    for use in (file_source, lambda path: load_gguf(path, CPU)):
        with pytest.raises(InputError, match=expected):
            use(tmp_path / "adapter.gguf")
        with pytest.raises(InputError, match=r"headless\.gguf: is no language model: has no token_embd\.weight"):
            use(tmp_path / "headless.gguf")


def test_what_llama_cpp_does_otherwise_is_refused_by_name(tmp_path: Path) -> None:
    folder = make_kind(tmp_path / "gemma3", "gemma3", query_pre_attn_scalar=64)
    with pytest.raises(InputError, match="query_pre_attn_scalar 64 other than head_dim"):
        folder_source(load_staged(str(folder), CPU), load_tokenizer(str(folder)), str(folder))
    wide = make_kind(tmp_path / "qwen2", "qwen2", head_dim=32)
    with pytest.raises(InputError, match="qwen2 with head_dim 32 for 4 heads of 64 in all"):
        folder_source(load_staged(str(wide), CPU), load_tokenizer(str(wide)), str(wide))
    slide = make_kind(tmp_path / "mistral", "mistral", sliding_window=16)
    with pytest.raises(InputError, match="mistral with a sliding window of 16"):
        folder_source(load_staged(str(slide), CPU), load_tokenizer(str(slide)), str(slide))
    other = make_kind(tmp_path / "olmo", "olmo2")
    with pytest.raises(InputError, match="'olmo2' has no map to GGUF here"):
        folder_source(load_staged(str(other), CPU), load_tokenizer(str(other)), str(other))
