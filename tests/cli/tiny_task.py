"""A task of lm-eval with choices, whose rows are in a file."""

import json


TASK = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: [{choices}]
doc_to_target: answer
metric_list: [{{metric: acc}}]
"""
CHOICES = ["ball:1", "ball:2", "ball:3"]
ROWS = [{"prompt": f"ball:{index % 3 + 1} 1<->2 {index % 2 + 1}<->3", "answer": index % 3} for index in range(9)]


def write_task(folder):
    folder.mkdir()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    choices = ", ".join(f'"{choice}"' for choice in CHOICES)
    (folder / "tiny_choice.yaml").write_text(TASK.format(rows=folder / "rows.jsonl", choices=choices))
    return folder
