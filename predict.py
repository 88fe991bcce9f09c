"""Caption photographs: `python predict.py checkpoint=RUN_DIR input=FOLDER`, or a data set: `data=coco split=val`."""

import sys

import hydra
from omegaconf import DictConfig

from captioning.cli import heavy_imports, one_sentence_errors, prepared_arguments
from captioning.prediction.plan import planned, predict_config


@hydra.main(version_base="1.3", config_path="conf", config_name="predict")
def main(cfg: DictConfig) -> None:
    """Ends with status 0 if every picture got a caption, 1 after a user's mistake, 2 if some could not be read."""
    with one_sentence_errors():
        config = predict_config(cfg)
        plan = planned(config)
        with heavy_imports():  # takes seconds: help, a typo or a wrong path is answered before
            from captioning.prediction.run import predict

        if predict(config, plan).failed:
            sys.exit(2)


if __name__ == "__main__":
    with one_sentence_errors():
        sys.argv[1:] = prepared_arguments(sys.argv[1:], "predict")
    main()
