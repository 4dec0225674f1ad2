"""What the runs of a config need of a network, to be found out before any image is made."""

from collections.abc import Mapping, Sequence
from typing import Any

from synq.config.calibration import kept_bits, size_in_bytes, unmatched
from synq.config.plan import Plan
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

    Empty for a model that is not in the grid: of it any run may be asked for by its file name.
    """
    if model not in plan.grid.models:
        return []
    found = []
    for method in plan.grid.methods:
        calibration = plan.settings("calibration", model, method=method)
        finetune = plan.settings("finetune", model, method=method)
        wanted = {
            "finetune.cam": finetune.cam if finetune.cam != "off" else "",
            "finetune.feature_weight": finetune.feature_weight or "",
            "finetune.block_weight": finetune.block_weight or "",
            "finetune.reconstruct": finetune.reconstruct if finetune.reconstruct != "off" else "",
            "calibration.range_source": (
                "generator" if calibration.range_source == "generator" else ""
            ),
        }
        image_set = plan.methods[method].images
        if plan.image_sets[image_set].stage == "synthesis":
            images = plan.image_settings(model, image_set)
            # Of a prior that is not named above every network has what it reads.
            named = f"synthesis.prior={images.prior}" in SETTINGS
            wanted["synthesis.prior"] = images.prior if named else ""
            wanted["synthesis.deep_weight"] = images.deep_weight or ""
        if calibration.budget:
            wanted["calibration.budget"] = f"{calibration.budget}{_FROM}{min(calibration.widths)}"
        found += [f"{method}:{setting}={value}" for setting, value in wanted.items() if value]
        found += [f"{method}:calibration.keep_bits={pair}" for pair in calibration.keep_bits]
    return found


# Between a budget and the smallest of the widths.
_FROM = " with widths from "


def refused_widths(found: Mapping[str, Any], required: Sequence[str]) -> dict[str, str]:
    """``refusals`` more: what of ``WIDTHS`` in ``required`` a network's inspection rules out.

    The size is without what ``keep_bits`` and ``ends_bits`` add; fine-tuning counts that too.
    """
    refusals = {}
    for setting in {word.partition(":")[2] for word in required}:
        name, _, value = setting.partition("=")
        if name == "calibration.keep_bits":
            (pattern,) = kept_bits((value,))
            refusals[setting] = unmatched(pattern, found["names"])
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
