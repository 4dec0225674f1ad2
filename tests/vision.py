"""torchvision's models, also beside a torch whose build its compiled part does not fit."""

import torch


def torchvision_models():
    try:
        from torchvision import models
    except RuntimeError as error:
        # The classifiers need none of the compiled operations; these two it asks for by name.
        assert "torchvision::nms" in str(error)  # noqa: PT017
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        from torchvision import models

        models.kept_library = library  # it is undone when nothing holds it
    return models
