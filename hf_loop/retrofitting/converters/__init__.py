"""The published looped checkpoints that can be converted, one module for each family.

A module has three functions, and a `MODEL_CLASS` where the model is not the Auto class's. `config` is the source's
`config.json` as a dictionary, or its `all_config.yaml`.

    recognizes(config) -> bool                 whether the checkpoint belongs to this family
    convert_config(config) -> LoopedConfig     ValueError names a setting that has no counterpart here, with its value
    convert_state_dict(config, tensors) -> dict[str, torch.Tensor]
                                               under our names; takes out of `tensors` what it uses or knows to be
                                               superfluous (a second copy, a buffer), so that what stays is unknown;
                                               ValueError names tensors that are missing or do not fit

A fourth, `generation_settings(config)`, says what the generation configuration has besides the special tokens, where
the checkpoint has settings of its own for that, such as a cache policy. A fifth, `tokenizer_settings(config)`, says
what `tokenizer_config.json` has to say otherwise than the source's. A sixth, `save(model, folder, num_loops)`, writes
a model back in the layout, and refuses by a ValueError what the layout cannot say.

For all but the first the reader adds to `config` what stands beside it: `"tensor_names"`, the names of all tensors,
`"tensor_shapes"`, their shapes by name, and `"tokenizer_token_ids"`, those of `bos_token_id`, `eos_token_id` and
`pad_token_id` that the tokenizer's files give.
"""

from types import ModuleType

from . import (
    dory,
    hrm_puzzle,
    hrm_text,
    huginn,
    ifm_looped,
    inkling2_loop,
    nanbeige,
    ouro,
    parcae,
    retrofitted_recurrence,
)


# asked in this order
CONVERTERS: tuple[ModuleType, ...] = (
    huginn,
    retrofitted_recurrence,
    parcae,
    ouro,
    nanbeige,
    dory,
    ifm_looped,
    inkling2_loop,
    hrm_text,
    hrm_puzzle,
)
