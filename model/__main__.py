"""python -m model count PRESET | export RUN PATH: what a model costs, and its weights for other people's tools."""

import dataclasses
import importlib.util
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from common import cli, files
from kernels.dispatch import Kernels
from model.config import GPTConfig

if TYPE_CHECKING:
    from model.gpt import GPT


@dataclass(frozen=True)
class Count:
    """Count parameters, operations and bytes of training before anything is trained."""

    preset: tyro.conf.Positional[str]
    """A preset's name, or a directory that holds a config.json."""
    changes: tyro.conf.Positional[tuple[str, ...]] = ()
    """Fields of the config to change, such as n_expert=8 or layers=aamm."""
    batch_size: int = 8
    """Sequences of block_size tokens per step."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """The precision of autocast; weights, gradients and optimizer stay in float32."""
    kernels: Kernels = "auto"
    """Whose attention and norms: torch's, ours (fused), or our CUDA on the CPU (emulated)."""
    checkpoint_activations: bool = False
    """Recompute each block in the backward pass."""


@dataclass(frozen=True)
class Export:
    """Write a run's best weights and its tokenizer in the layout of another library."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A run of train.py, such as runs/quickstart."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """What to write: for hf a new directory, which sample.py --run reads too if the layout is GPT-2's or our own; for
    gguf and onnx a new file."""
    to: Literal["hf", "gguf", "onnx"] = "hf"
    """hf: Hugging Face's layout, for transformers' AutoModelForCausalLM and AutoTokenizer. gguf: for llama.cpp and
    Ollama. onnx: for onnxruntime, without the tokenizer."""
    type: Literal["f32", "f16", "q8_0"] = "f32"
    """With gguf: how matrices are stored; q8_0 takes a quarter of the bytes, and a scale for each 32 numbers."""


def count(options: Count) -> None:
    """Print the tables of model.accounting."""
    changes = dict(map(parse_change, options.changes))
    config = dataclasses.replace(read_config(options.preset), **changes)
    again = options.checkpoint_activations or config.checkpoint_activations
    config = dataclasses.replace(config, checkpoint_activations=again)
    import kernels
    from model.accounting import report

    with kernels.use(options.kernels):
        report(config, " ".join([options.preset, *options.changes]), options.batch_size, options.precision)


def export(options: Export) -> None:
    """Write weights and tokenizer, and print which programs can run them: theirs cannot run every variant."""
    from model.gpt import GPT

    if not (options.run / "tokenizer.json").is_file():
        raise FileNotFoundError(
            f"there is no {options.run / 'tokenizer.json'}: give the directory of a run, such as runs/quickstart"
        )
    if options.out.exists():
        raise ValueError(f"{options.out} is there already: give a new path, or remove it first")
    if options.type != "f32" and options.to != "gguf":
        raise ValueError(f"--type {options.type} is for --to gguf: leave it out")
    gpt = GPT.from_pretrained(files.whole_directory(options.run / "best"))
    readers = {"hf": export_hf, "gguf": export_gguf, "onnx": export_onnx}[options.to](options, gpt)
    print(f"written to {options.out}, for {readers}")


def export_hf(options: Export, gpt: "GPT") -> str:
    """Write Hugging Face's layout; return who can read it."""
    from model import layouts
    from model.pretrained import is_gpt2

    layout, tokenizer = layouts.layout(gpt.config), options.run / "tokenizer.json"
    with files.atomic_directory(options.out) as aside:
        if layout:
            layouts.save(aside, gpt.config, gpt.state_dict(), tokenizer)
        else:
            gpt.save_pretrained(aside, tokenizer)
    if layout:
        return f"transformers, as a {layout}"
    return "transformers and sample.py" if is_gpt2(gpt.config) else "sample.py (GPT-2's code cannot run it)"


def export_gguf(options: Export, gpt: "GPT") -> str:
    """Write a GGUF file; return who can read it."""
    _need("gguf")
    from model.export import gguf

    tokenizer, name = options.run / "tokenizer.json", options.run.resolve().name
    gguf.save(options.out, gpt.config, gpt.state_dict(), tokenizer, options.type, name)
    return f"llama.cpp and Ollama, as a {gguf.architecture(gpt.config)}"


def export_onnx(options: Export, gpt: "GPT") -> str:
    """Write an ONNX file; return who can read it."""
    _need("onnx")
    from model.export import onnx

    onnx.save(options.out, gpt)
    return "onnxruntime"


def _need(package: str) -> None:
    """Raise ValueError if an optional package is not installed."""
    if importlib.util.find_spec(package) is None:
        raise ValueError(f"the package {package} is not installed: pip install {package}")


def parse_change(text: str) -> tuple[str, Any]:
    """Return the field and the value of one change; a value that is no number and no true or false is a word.

    >>> parse_change("n_expert=8"), parse_change("layers=am")
    (('n_expert', 8), ('layers', 'am'))
    """
    name, equals, value = text.partition("=")
    if not equals or name not in {field.name for field in dataclasses.fields(GPTConfig)}:
        raise ValueError(f"{text!r} changes no field of the config: give FIELD=VALUE, such as n_expert=8")
    try:
        return name, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name, value


def read_config(name: str) -> GPTConfig:
    """Return the config of a preset or of a directory."""
    from model import pretrained

    if Path(name).is_dir():
        return pretrained.read_config(Path(name))
    return GPTConfig.preset(name)


COMMANDS = {"count": (Count, count), "export": (Export, export)}


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Run one of the commands."""
    cli.dispatch(COMMANDS, argv, prog="python -m model")


if __name__ == "__main__":
    main()
