"""What a pipeline's author sets on a task and is meant for the job that the task launches."""

from kfp.dsl import TaskConfigField, TaskConfigPassthrough

# Devices and memory are for the job alone: the step itself only waits. What the step may need as
# well, to reach the store, goes to both.
PASSED_ON = [
    TaskConfigField.RESOURCES,
    TaskConfigField.KUBERNETES_TOLERATIONS,
    TaskConfigField.KUBERNETES_NODE_SELECTOR,
    TaskConfigField.KUBERNETES_AFFINITY,
    TaskConfigPassthrough(field=TaskConfigField.ENV, apply_to_task=True),
    TaskConfigPassthrough(field=TaskConfigField.KUBERNETES_VOLUMES, apply_to_task=True),
]
