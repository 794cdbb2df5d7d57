"""Sample text from a trained model: python sample.py --run DIR [--prompt TEXT] [--temperature T] …

    python sample.py --prompt "One day" --show-probs         each token by its probability
    python sample.py --score "The cat sat." stories.txt      how likely texts are
    python sample.py --score pages.jsonl --out scored.jsonl  the same as columns, for python -m data web
    python sample.py --interactive                           write a story in turns
    python sample.py --chat --run runs/sft                   talk to a model that follows instructions
    python sample.py --prompt-file prompts.txt --out samples.jsonl

basics/sample.py is the plain version; the work is done in
inference/text.py, scoring.py, probabilities.py, interactive.py and conversation.py.
"""

import dataclasses
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from common import cli, files
from inference.run import check_seed

if TYPE_CHECKING:
    from inference.text import TextModel
    from model.generate import Rules


MODES = ("beams", "interactive", "chat", "show_probs", "score", "out")
USED_BY_ALL = ("run", "precision", "device", "seed")
RULES = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "compile")
PROMPTS = ("prompt", "prompt_file", "special_tokens", "num_samples", "max_new_tokens", "ignore_eot")
USED: dict[str | None, tuple[str, ...]] = {
    None: (*PROMPTS, *RULES, "stop"),
    "show_probs": (*PROMPTS, *RULES, "stop"),
    "out": (*PROMPTS, *RULES, "stop", "batch_size"),
    "beams": PROMPTS,
    "interactive": (*RULES, "prompt", "special_tokens", "max_new_tokens", "stop"),
    "chat": (*RULES, "prompt", "max_new_tokens"),
    "score": ("special_tokens",),
}


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """Continue a prompt, or sample a story from nothing."""

    run: Path = Path("runs/quickstart")
    """Directory of a training run (its best weights are used), or of a model in Hugging Face's layout."""
    prompt: str = ""
    """Text to continue; empty starts a new story."""
    prompt_file: Path | None = None
    """A file with a prompt in each line, instead of --prompt."""
    special_tokens: bool = False
    """Read special tokens such as <|endoftext|> in prompts and texts as tokens, not as their letters."""
    num_samples: int = 3
    """How many continuations of each prompt."""
    max_new_tokens: int = 300
    """Tokens to add at most; a sample also ends at <|endoftext|>."""
    temperature: float = 0.5
    """Divides the logits: 0 always takes the likeliest token, 1 samples as the model believes."""
    top_k: int | None = None
    """Sample among the k likeliest tokens only."""
    top_p: float | None = None
    """Sample among the smallest set of likeliest tokens whose probabilities reach this sum."""
    min_p: float | None = None
    """Sample among the tokens at least this many times as likely as the likeliest."""
    repetition_penalty: float = 1.0
    """Above 1, tokens that are already in the text become less likely."""
    stop: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Text before which a sample ends; may be given several times."""
    ignore_eot: bool = False
    """Continue after <|endoftext|>."""
    seed: int | None = None
    """The same seed gives the same samples, sample i of a prompt from seed + i; without one they are new each time."""
    beams: int | None = None
    """Find the likeliest continuations by beam search with this many beams, instead of sampling."""
    interactive: bool = False
    """Write a story in turns: write, continue, undo, change the rules."""
    chat: bool = False
    """Talk to the model by the chat template of its run; a --prompt is the first request."""
    show_probs: bool = False
    """Colour each token by its probability and list the runners-up."""
    score: tuple[str, ...] = ()
    """Texts, files of lines or of JSON lines with a field text: print how likely each is instead of sampling."""
    out: Path | None = None
    """Write the samples here as JSON lines instead of printing them; they are sampled in batches. With --score: write
    each text, or its JSON line, with the fields perplexity and bits_per_byte.
    """
    batch_size: int = 16
    """Samples at a time with --out."""
    precision: Literal["float32", "bfloat16", "int8"] = "float32"
    """Precision of the matrices: fewer bits are read faster; int8 is for the CPU."""
    compile: bool = False
    """Compile the decode step: a CUDA graph on a GPU; takes half a minute to start."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto takes a GPU if there is one."""
    kernels: Literal["auto", "torch", "fused", "emulated"] = "auto"
    """Attention and norms by torch's ops, by ours (fused), or by our CUDA on the CPU (emulated, slow); auto takes ours
    if they are built for the device, unless SLM_KERNELS names others."""

    def __post_init__(self) -> None:
        for name in ("num_samples", "max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if self.prompt and self.prompt_file:
            raise ValueError("both --prompt and --prompt-file are given: choose one")
        modes = [name for name in MODES if getattr(self, name)]
        if len(modes) > 1 and modes != ["score", "out"]:
            raise ValueError(f"--{' and --'.join(modes).replace('_', '-')} exclude each other: choose one")
        self._check_unused(modes[0] if modes else None)
        if self.seed is not None:
            check_seed(self.seed)

    def _check_unused(self, mode: str | None) -> None:
        """Raise ValueError for a flag that the mode (None: sampling to the terminal) would ignore."""
        for field in dataclasses.fields(self):
            if (
                field.name in (*MODES, *USED_BY_ALL, *USED[mode])
                or getattr(self, field.name) == field.default
            ):
                continue
            flag = f"--{field.name.replace('_', '-')}"
            if mode is None:
                raise ValueError(f"{flag} has no effect without --out: leave it out")
            raise ValueError(f"--{mode.replace('_', '-')} knows no {flag}: leave one of them out")

    def rules(self) -> "Rules":
        """Return the fields that say how the next token is drawn."""
        from model.generate import Rules

        return Rules(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Rules)})

    def prompts(self) -> list[str]:
        """Return the lines of the prompt file, or the prompt with U+FFFD for bytes that are not UTF-8."""
        if self.prompt_file is None:
            from bpe.pretokenize import repair_surrogates

            return [repair_surrogates(self.prompt)]
        prompts = files.read_text(self.prompt_file).splitlines()
        if not prompts:
            raise ValueError(f"{self.prompt_file} is empty: write a prompt in each line")
        return prompts


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Sample from the model of a run as `argv` says."""
    config = cli.parse(SampleConfig, argv, prog="sample.py")
    if config.seed is None:
        config = dataclasses.replace(config, seed=random.randrange(1 << 32))
    import kernels

    with kernels.use(config.kernels):
        answer(config)


def answer(config: SampleConfig) -> None:
    """Do what `config` says with the kernels that are in use."""
    rules, prompts = config.rules(), config.prompts()
    from inference.text import TextModel, check_stops

    check_stops(config.stop)
    text_model = TextModel.load(
        config.run, config.device, config.precision, config.compile, special_tokens=config.special_tokens
    )
    if config.score:
        score(config, text_model)
    elif config.interactive:
        interact(config, text_model, rules)
    elif config.chat:
        chat(config, text_model, rules)
    elif config.out:
        write(config, text_model, rules, prompts)
    else:
        for prompt in prompts:
            ids = text_model.encode_prompt(prompt)
            if config.beams is None:
                print_samples(config, text_model, rules, prompt, ids)
            else:
                search(config, text_model, prompt, ids)


def print_samples(
    config: SampleConfig, text_model: "TextModel", rules: "Rules", prompt: str, ids: list[int]
) -> None:
    """Print the samples of one prompt, each as it is generated."""
    for number in range(config.num_samples):
        continuations = text_model.generate(
            [ids],
            config.max_new_tokens,
            rules,
            seeds=[config.seed + number],
            stops=config.stop,
            ignore_eot=config.ignore_eot,
        )
        print(f"--- sample {number + 1} ---")
        if config.show_probs:
            show_probabilities(text_model, [*ids, *continuations.finish()[0].ids])
            continue
        print(prompt, end="", flush=True)
        for pieces in continuations:
            print(pieces.get(0, ""), end="", flush=True)
        print("\n")


def show_probabilities(text_model: "TextModel", ids: list[int]) -> None:
    """Print the text of `ids` in colours and a table of its tokens."""
    from rich.console import Console

    from inference.probabilities import render, token_choices

    Console().print(render(token_choices(text_model, ids)))


def search(config: SampleConfig, text_model: "TextModel", prompt: str, ids: list[int]) -> None:
    """Print the best continuations that beam search finds."""
    from inference.run import decode
    from model.beam import beam_search

    room = text_model.model.config.block_size - len(ids)
    stop = () if config.ignore_eot or text_model.end is None else text_model.end
    found = beam_search(
        text_model.model, ids, min(room, config.max_new_tokens), beams=config.beams, stop=stop
    )
    for number, beam in enumerate(found[: config.num_samples], 1):
        print(f"--- beam {number}, log P {beam.log_probability:.2f} ---")
        print(f"{prompt}{decode(text_model.tokenizer, beam.ids)}\n")


def score(config: SampleConfig, text_model: "TextModel") -> None:
    """Print log P, perplexity and bits per byte of each text, or write them."""
    from rich.console import Console

    from inference import scoring

    if config.out:
        print(
            f"{scoring.write_scores(text_model, config.score, config.out):,} scored texts written to {config.out}"
        )
        return
    texts = scoring.texts_of(config.score)
    Console().print(scoring.table(scoring.score_texts(text_model, texts)))


def interact(config: SampleConfig, text_model: "TextModel", rules: "Rules") -> None:
    """Run an interactive session; a --prompt is its first turn."""
    from inference import interactive

    dialogue = interactive.Dialogue(text_model, rules, config.max_new_tokens, config.seed, config.stop)
    if config.prompt:
        interactive.answer(dialogue, config.prompt)
    interactive.run(dialogue)


def chat(config: SampleConfig, text_model: "TextModel", rules: "Rules") -> None:
    """Run a conversation; a --prompt is its first request."""
    from inference import interactive
    from inference.chat import ChatTemplate
    from inference.conversation import Conversation

    template = ChatTemplate.load(config.run)
    conversation = Conversation(text_model, template, rules, config.max_new_tokens, config.seed)
    if config.prompt:
        interactive.answer(conversation, config.prompt)
    interactive.run(conversation)


def write(config: SampleConfig, text_model: "TextModel", rules: "Rules", prompts: list[str]) -> None:
    """Sample from all prompts in batches and write one JSON object for each sample."""
    jobs = [
        (prompt, text_model.encode_prompt(prompt), config.seed + number)
        for prompt in prompts
        for number in range(config.num_samples)
    ]
    with files.atomic(config.out, "w") as file:
        for first in range(0, len(jobs), config.batch_size):
            batch = jobs[first : first + config.batch_size]
            continuations = text_model.generate(
                [ids for _, ids, _ in batch],
                config.max_new_tokens,
                rules,
                seeds=[seed for _, _, seed in batch],
                stops=config.stop,
                ignore_eot=config.ignore_eot,
            )
            for row, sample in enumerate(continuations.finish()):
                prompt, _, seed = batch[row]
                record = {"prompt": prompt, "text": sample.text, "tokens": len(sample.ids), "seed": seed}
                file.write(
                    json.dumps({**record, "end": continuations.reason(row)}, ensure_ascii=False) + "\n"
                )
    print(f"{len(jobs)} samples written to {config.out}")


if __name__ == "__main__":
    main()
