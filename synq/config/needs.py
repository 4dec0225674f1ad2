"""What the runs of a config need of a network, to be found out before any image is made."""

from synq.config.plan import Plan


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
            "calibration.range_source": (
                "generator" if calibration.range_source == "generator" else ""
            ),
        }
        image_set = plan.methods[method].images
        if plan.image_sets[image_set].stage == "synthesis":
            images = plan.image_settings(model, image_set)
            wanted["synthesis.prior"] = images.prior if images.prior != "auto" else ""
            wanted["synthesis.deep_weight"] = images.deep_weight or ""
        found += [f"{method}:{setting}={value}" for setting, value in wanted.items() if value]
    return found
