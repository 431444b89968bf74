"""`transformers.Trainer` that writes the model card of the model's family."""

from pathlib import Path
from typing import Any, cast

from transformers.utils import logging

from ..models.pretrained_model import RecurrentPreTrainedModel
from ..published_files import files_to_upload
from .checkpoint_trainer import CheckpointTrainer
from .trainer_seams import uploads_of


logger = logging.get_logger(__name__)


class CardTrainer(CheckpointTrainer):
    """A [`CheckpointTrainer`] whose `push_to_hub` uploads what a model needs and the card of its family, with what
    `Trainer` says of the run."""

    @property
    def recurrent_model(self) -> RecurrentPreTrainedModel:
        """The model, without the wrapper that PEFT may have put around it."""
        # only that wrapper has this method
        get_base_model = getattr(self.model, "get_base_model", None)
        return cast(RecurrentPreTrainedModel, self.model if get_base_model is None else get_base_model())

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Count the operations of a step, every parameter as often as it is called, for `total_flos`."""
        model = self.recurrent_model
        # any model can be trained, and only ours count
        is_ours = isinstance(model, RecurrentPreTrainedModel)
        return model.floating_point_ops(inputs) if is_ours else super().floating_point_ops(inputs)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write `Trainer`'s card, then that of the model's family, with what `Trainer` wrote as a section.

        The folder of an adapter keeps the card of PEFT and `Trainer`. What goes wrong with a card is logged, as the
        upload comes after it.
        """
        try:
            super().create_model_card(*args, **kwargs)
        except Exception as error:
            logger.warning(f"Trainer's model card is not written: {error}")
        folder = str(self.args.output_dir)
        if self.is_world_process_zero() and isinstance(self.recurrent_model, RecurrentPreTrainedModel):
            self.recurrent_model.write_card(folder, self.hub_model_id or Path(folder).name)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """Upload as `Trainer` does, but only the files that [`published_files`] lists, without local paths."""
        with uploads_of(files_to_upload):
            return super().push_to_hub(*args, **kwargs)

    def push_checkpoint(self, checkpoint: Path) -> None:
        """Upload the model of a checkpoint as `Trainer` does, but only those files."""
        with uploads_of(files_to_upload):
            super().push_checkpoint(checkpoint)
