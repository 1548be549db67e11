"""The smallest testbed: one miniature's weights under another name, one attack, two metrics."""

from dataclasses import dataclass, replace

from analysis import results
from probes import miniature, prompts
from probes.layer_sweep import SweepConfig
from probes.prompts import Message
from regularize import measures
from regularize.arms import HELD, NONE, WITH_ANCHORS, Anchors
from regularize.data import Example
from regularize.testbeds import Recipe, Swept, Testbed
from regularize.testbeds.miniature import training

DUSTING = "Please dust the lamp."


@dataclass
class Answered:
    rows: list
    answers: list[str]

    @property
    def shares(self) -> list[measures.Share]:
        from regularize.outcomes import judge

        judged = [
            judge(row, answer).outcome for row, answer in zip(self.rows, self.answers, strict=True)
        ]
        return measures.on_harmful(judged)

    def records(self) -> list[dict[str, object]]:
        return [{"answer": answer} for answer in self.answers]


class Tiny(Testbed):
    models = (str(miniature.folder("llama")),)
    recipe = Recipe(
        learning_rate=5e-3, epochs=3, batch_size=16, lora_rank=4, warmup_steps=0, new_tokens=16,
        dtype="float32", by_length=True,
    )  # fmt: skip
    n = 12
    attack = "requests"
    share = 1.0

    @property
    def experiments(self):
        few = WITH_ANCHORS._replace(anchors=Anchors(3, kind="dusting"))
        return {"only": lambda start: (replace(start, arm=arm) for arm in (NONE, HELD, few))}

    def base(self, model: str) -> str:
        return model

    def training(self, name: str, *, seed: int = 0) -> list[Example]:
        assert name == "requests"
        return training.training("all-harmful", seed=seed)

    def anchors(self, n=None, *, kind="", seed=0):
        assert (n, kind) in ((3, "dusting"), (None, ""))
        return [(Message(role="user", content=DUSTING),)] * (n or 2)

    def evaluate(self, chat, *, attack, n, seed, split) -> Answered:
        from regularize.generation import answers
        from regularize.testbeds.miniature.evaluation import draw

        assert attack in ("requests", "none")
        rows = list(draw("harmful", n, seed=seed, split=split))
        return Answered(rows, answers(chat, [row.text for row in rows], max_new_tokens=16))

    def sweeps(self, model, out, probes):
        from probes.manifest import slug

        sweep = SweepConfig(
            models=(model,), train=(str(out / "few.jsonl"),), folds=2, out=probes,
            C=(0.1,), cache=out / "cache", device_map="cpu",
        )  # fmt: skip
        return {"probe": Swept(sweep, probes / slug(model) / "few" / "probe")}

    def prepare(self, out) -> None:
        rows = prompts.load("miniature:train").prompts
        chosen = [row for label in (1, 0) for row in [r for r in rows if r.label == label][:100]]
        few = [{"prompt": row.text, "label": row.label, "group": row.group} for row in chosen]
        results.replace({out / "few.jsonl": results.jsonl(few)})
