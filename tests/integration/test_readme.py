"""The Python of the README runs as it is printed."""

import re
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def test_the_python_of_the_readme_runs(checkpoint, text_file, tmp_path, monkeypatch, capsys):
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    text = tmp_path / "c4.txt"
    text.write_text(text_file.read_text())
    monkeypatch.chdir(tmp_path)
    program = block.replace('"MODEL"', repr(str(checkpoint()))).replace("c4.jsonl", "c4.txt")
    exec(compile(program, "README.md", "exec"), {})
    assert (tmp_path / "quantized" / "model.safetensors").exists()
    assert capsys.readouterr().out.count("block 3") == 3


def test_every_generated_table_of_the_readme_is_filled():
    tables = re.findall(r"<!-- generated: \w+ -->\n(.*?)<!-- end -->", README.read_text(), re.S)
    assert len(tables) >= 2
    assert all("not run" not in table and "|---|" in table for table in tables)
