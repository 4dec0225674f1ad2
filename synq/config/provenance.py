"""What each job's result is made with: its settings, the code that runs, and all that came before.

It is what Snakemake keeps of a job's parameters, and so what decides whether the job runs again
(docs/decisions/0006-reruns.md).
"""

import functools
import hashlib
from typing import Any

from synq.config.fields import flags
from synq.config.fingerprint import factory_digest, file_digest, stage_digest
from synq.config.model import MODEL_SETTINGS, PLACES
from synq.config.plan import MODEL_STAGES, Plan
from synq.config.recorded import recorded

# Sources of models whose files come from a zoo by their names, and those with files of the user's.
ZOOS = [source for source, read in MODEL_SETTINGS.items() if "mirror" in read]
FILES = [source for source, read in MODEL_SETTINGS.items() if read.get("sha256")]


class Provenance:
    """The parameters of the jobs of a plan.

    A job is named by its stage, its model, and, where it has one, its method or image set: the
    stage ``images`` takes the name of an image set, ``finetune`` and ``sensitivity`` that of a
    method, the others none.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        # These are asked for with every job, of which there may be thousands.
        self.groups = functools.cache(self._groups)
        self.flags = functools.cache(self._flags)
        self.record = functools.cache(self._record)
        self.code = functools.cache(stage_digest)
        self.factory = functools.cache(self._factory)

    def _groups(self, stage: str, model: str, name: str = "") -> list[tuple[str, Any]]:
        """The settings of a job, as pairs of a section of the config and its dataclass."""
        plan = self.plan
        if stage == "model":
            return [(stage, plan.models[model])]
        if stage == "images":
            return [(plan.image_sets[name].stage, plan.image_settings(model, name))]
        sections = {
            "finetune": ("calibration", "finetune"),
            "sensitivity": ("calibration",),
            # The test set's names and how its images are cropped go with the file.
            "export": ("export", "test"),
        }.get(stage, (stage,))
        return [(section, plan.settings(section, model, method=name)) for section in sections]

    def _flags(self, stage: str, model: str, name: str = "") -> list[str]:
        """All settings of a job as the flags of its command."""
        found = []
        for _, settings in self.groups(stage, model, name):
            away = () if getattr(settings, "source", "") in ZOOS else PLACES
            found += flags(settings, without=away)
        return found

    def _record(self, stage: str, model: str, name: str = "") -> list[str]:
        """What a job's result depends on, of the same settings: those not at their baseline."""
        found: list[str] = []
        for section, settings in self.groups(stage, model, name):
            silent = {*PLACES}
            if getattr(settings, "source", "") in FILES:
                silent.add("weights")  # a file's SHA-256 is recorded, wherever the file is
            # The order of folders, or what the file of an export has in it: nothing else.
            named = stage == "export" or getattr(settings, "dataset", "") == "folder"
            if not named:
                silent.add("names")
            found += recorded(section, settings, without=silent)
            names: tuple[str, ...] = getattr(settings, "names", ())
            if named and len(names) == 1:
                found.append(f"{section}.names holds {file_digest(names[0])}")
        return found

    def _factory(self, model: str) -> str:
        """Digest of the user's own function that makes the network; empty for other sources."""
        return factory_digest(self.plan.models[model].factory)

    def made_from(self, stage: str, model: str, method: str = "", image_set: str = "") -> str:
        """Digest of all that the stages before ``stage`` depend on, for its jobs' parameters.

        A job that a changed setting started, and that was killed, has taken its old output with
        it. Snakemake does not miss a file between the stages while the last file is there, but it
        does notice that the last file was made from something else.
        """
        plan = self.plan
        image_set = image_set or (plan.methods[method].images if method else "")
        steps: list[Any] = [[self.record("model", model), self.code("fetch")]]
        if plan.models[model].source == "python":
            steps.append(self.factory(model))
        made_by = plan.image_rule(model, image_set) if image_set else ""
        if stage in ("sensitivity", "finetune", "evaluate", "export"):
            steps += [self.record("images", model, image_set), self.code(made_by)]
        if made_by == "borrow":
            maker = plan.maker(model, image_set)
            lent = self.record("images", maker, image_set), self.code("synthesize")
            steps += [self.made_from("synthesize", maker), *lent]
        if stage in ("evaluate", "export"):
            steps += [self.record("finetune", model, method), self.code("finetune")]
        return _digest(steps)

    def made_from_runs(self) -> str:
        """The same of what is made from all runs of the grid, and from what evaluated them."""
        models = self.plan.grid.models
        runs = [(run["model"], run["method"]) for run in self.plan.runs()]
        last: list[Any] = [self.record(stage, model) for stage in MODEL_STAGES for model in models]
        last += [self.code("evaluate_teacher"), self.code("evaluate"), self.code("export")]
        return _digest([[self.made_from("evaluate", *run) for run in runs], last])

    def inspected(self, model: str) -> str:
        """What an inspection's findings are of: the teacher, and how it was looked at."""
        return f"{self.made_from('inspect', model)}-{self.code('inspect')}"


def _digest(steps: Any) -> str:
    return hashlib.sha256(repr(steps).encode()).hexdigest()[:16]
