"""Every skip of transformers' tests has a known reason; any other skip is a failure."""

import re

import pytest


# reason of the skip, as a regular expression -> why that is right for our models
EXPECTED_SKIPS = {
    # what this machine does not have
    r"test requires (an? )?(accelerator|multiple accelerators|CUDA|GPU|MPS)": "needs an accelerator",
    r"test requires Flash Attention( [34])?": "needs a kernel that runs on a GPU only",
    r"test requires (deepspeed|the kernels library|bitsandbytes)": "needs a package our users need not have",
    r"Test requires torchao": "needs a package our users need not have",
    r"test is slow": "transformers runs these on machines with a GPU; RUN_SLOW=1 -m slow runs them here",
    r"(float16|bfloat16) not supported on cpu": "depends on the processor",
    # what our models do not have
    r"Do not take a cache as input to forward": "a puzzle is read at once",
    r"No sequence-to-sequence language modeling head to check": "decoders only",
    r"Model does not have position embeddings": "positions are rotary; there is no table of them to resize",
    r".+ has no axial RoPE layer defined": "positions are those of text",
    r"This model does not have partial rope supported": "the tiny backbone, a Llama, rotates every channel",
    r"This model has no `base_model_class` defined in tester": "a puzzle model's rotary embedding is Llama's own",
    r"Model does not support sliding window mask": "the tiny backbone, a Llama, has none",
    r"This model is not composite|Model is not a composite model": "one decoder, not one each for image and text",
    r"\w+ does not support SDPA": "the test is for composite models",
    r"This model has no sparse experts|Not an MoE model|\w+ does not support grouped_mm": "a dense backbone",
    r"This model has no `output_router_logits` in its config": "a dense backbone",
    r"Model does not have (a token-dispatch|an) expert parallel plan": "a dense backbone",
    r"\w+( class)? has no _keep_in_fp32_modules": "no module is kept in fp32",
    r"No `_keep_in_fp32_modules_strict` defined": "no module is kept in fp32",
    r"No conversion found for": "weights are saved under the names they have in the model",
    r"Model does not support output_attentions": "the test looks for an annotation transformers' own heads lack",
}


def pytest_configure(config):
    for marker in (
        "accelerate_tests",
        "flash_attn_3_test",
        "flash_attn_4_test",
        "flash_attn_test",
        "is_fsdp_test",
        "is_tensor_parallel_test",
        "is_training_test",
        "order",
        "torch_compile_test",
    ):
        config.addinivalue_line("markers", f"{marker}: set by transformers")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if not reason.startswith("SKIPS: ") and not any(re.match(pattern, reason) for pattern in EXPECTED_SKIPS):
            report.outcome = "failed"
            report.longrepr = f"skipped for a reason that EXPECTED_SKIPS does not explain: {reason}"
    return report
