"""What the runs of a config need of a network, to be found out before any image is made."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from synq.config import layout
from synq.config.calibration import kept_bits, size_in_bytes, unmatched
from synq.config.plan import Plan
from synq.config.provenance import Provenance
from synq.errors import ConfigError, nearest

# The settings that not every network fits, with their value where it decides.
SETTINGS = (
    *("finetune.cam", "finetune.feature_weight", "finetune.block_weight"),
    "finetune.reconstruct",
    "calibration.range_source",
    "synthesis.deep_weight",
    *("synthesis.prior=auto", "synthesis.prior=batchnorm", "synthesis.prior=patches"),
)
# Those that depend on the names and the size of what is quantized.
WIDTHS = ("calibration.keep_bits", "calibration.budget")


def needs(plan: Plan, model: str) -> list[str]:
    """``method:section.setting=value`` of the grid's methods: settings that not every network fits.

    A model of the grid needs those of its runs; one that makes images, for itself or for others
    that borrow them, those of the images. Empty for one that is neither: of it any run may be
    asked for by its file name.
    """
    found = []
    for method in plan.grid.names:
        wanted = _of_runs(plan, model, method) if model in plan.grid.models else []
        image_set = plan.methods[method].images
        if model in (plan.maker(user, image_set) for user in plan.grid.models):
            wanted += _of_images(plan, model, image_set)
        found += [f"{method}:{setting}" for setting in wanted]
    return found


def _of_runs(plan: Plan, model: str, method: str) -> list[str]:
    calibration = plan.settings("calibration", model, method=method)
    finetune = plan.settings("finetune", model, method=method)
    budget = calibration.budget
    # Some layers may have fewer bits of their own.
    own = [calibration.ends_bits, *kept_bits(calibration.keep_bits).values()]
    least = min([*calibration.widths, *filter(None, own)])
    trained, aligned = finetune.epochs > 0, finetune.cam != "off" and finetune.cam_weight > 0
    wanted = {
        "finetune.cam": finetune.cam if trained and aligned else "",
        "finetune.feature_weight": finetune.feature_weight if trained else 0,
        "finetune.block_weight": finetune.block_weight if trained else 0,
        "finetune.reconstruct": finetune.reconstruct if finetune.reconstruct != "off" else "",
        "calibration.range_source": (
            "generator" if calibration.range_source == "generator" else ""
        ),
        "calibration.budget": f"{budget}{_FROM}{least}" if budget else "",
    }
    named = [f"{setting}={value}" for setting, value in wanted.items() if value]
    # What a wider scope adds has names that others have not.
    scope = "" if calibration.scope == "calls" else f"{_IN}{calibration.scope}"
    return named + [f"calibration.keep_bits={pair}{scope}" for pair in calibration.keep_bits]


def _of_images(plan: Plan, model: str, image_set: str) -> list[str]:
    if plan.image_sets[image_set].stage != "synthesis":
        return []
    images = plan.image_settings(model, image_set)
    # Of a prior that is not named above every network has what it reads.
    prior = f"synthesis.prior={images.prior}"
    deep = [f"synthesis.deep_weight={images.deep_weight}"] if images.deep_weight else []
    return ([prior] if prior in SETTINGS else []) + deep


# Between a budget and the smallest of the widths.
_FROM = " with widths from "
# Between a pair of ``keep_bits`` and the scope, where that is not calls.
_IN = " with scope "


def refused_widths(found: Mapping[str, Any], required: Sequence[str]) -> dict[str, str]:
    """``refusals`` more: what of ``WIDTHS`` in ``required`` a network's inspection rules out.

    The size is without what ``keep_bits`` and ``ends_bits`` add; fine-tuning counts that too.
    """
    refusals = {}
    for setting in {word.partition(":")[2] for word in required}:
        name, _, value = setting.partition("=")
        if name == "calibration.keep_bits":
            pair, _, scope = value.partition(_IN)
            (pattern,) = kept_bits((pair,))
            known = found["scopes"].get(scope, found)["names"]
            refusals[setting] = unmatched(pattern, known)
        elif name == "calibration.budget":
            size, _, least = value.partition(_FROM)
            more = found["quantized_parameters"] * (int(least) - 2) // 8
            smallest = found["bytes"]["2"] + more
            if size_in_bytes(size) < smallest:
                refusals[setting] = f"the smallest size is {smallest / 1000:.1f} kB; raise it"
    return {setting: refusal for setting, refusal in refusals.items() if refusal}


def unmet(refusals: Mapping[str, str], required: Sequence[str]) -> list[str]:
    """A line for each setting that a network does not fit, with the methods that have it.

    ``refusals`` are what an inspection found: one of ``SETTINGS`` -> what the network lacks for it.
    ``required`` are words as ``needs`` gives; another one raises ConfigError.
    """
    methods: dict[str, list[str]] = {}
    for word in required:
        method, _, setting = word.partition(":")
        if not {setting, setting.partition("=")[0]} & {*SETTINGS, *WIDTHS}:
            raise ConfigError(
                f"require has {word!r}; write METHOD:SETTING=VALUE, where {nearest(word, SETTINGS)}"
            )
        methods.setdefault(setting, []).append(method)
    found = []
    for setting, names in methods.items():
        name, _, value = setting.partition("=")
        refusal = refusals.get(setting) or refusals.get(name)
        if refusal:
            have = "method {} has" if len(names) == 1 else "methods {} have"
            found.append(f"{have.format(', '.join(names))} {name}: {value}, but {refusal}")
    return found


def misfits(plan: Plan, provenance: Provenance) -> Iterator[str]:
    """A line for each setting that a network of the grid is known not to fit.

    Known from its inspection among the results, if that is of the teacher as it is or would be made
    now. A job that runs again hides from Snakemake all other reasons of those that depend on it, if
    its output is ancient to them: so the inspection does not run again for what a method needs, and
    its findings are looked at here.
    """
    for model in (*plan.grid.models, *plan.lenders()):
        path = os.path.join(plan.results, layout.INSPECTION.format(model=model))
        try:
            with open(path, encoding="utf-8") as file:
                found = json.load(file)
        except (OSError, ValueError):
            continue
        if isinstance(found, dict) and found.get("recipe") == provenance.inspected(model):
            required = needs(plan, model)
            refusals = {**found["refusals"], **refused_widths(found, required)}
            for line in unmet(refusals, required):
                yield f"{model} does not fit: {line}"
