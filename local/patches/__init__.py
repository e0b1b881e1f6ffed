"""What MiniStack 1.5.33 does differently from AWS, and this project needs done right: one function for each, with the reason.

Each patch wraps a function of MiniStack's by name: where a name has gone, the local cloud does not start. tests/local/test_patches.py
shows what each is for, and fails when MiniStack does it by itself; then the patch goes.
"""

from . import events, functions, metrics, permissions, resources, states


def apply() -> None:
    functions.report_a_lambda_error_by_its_class()
    functions.name_throttles_as_step_functions_does()
    functions.bound_the_processes()
    events.complete_s3_events()
    events.ask_who_may_be_a_target()
    states.take_state_machines_in_yaml()
    states.put_out_what_a_succeed_state_says()
    states.ask_the_role_of_a_state_machine()
    states.retry_as_the_retrier_says()
    states.keep_how_an_execution_ended()
    states.time_out_executions()
    states.limit_payloads()
    metrics.make_metrics_of_embedded_logs()
    metrics.count_executions()
    metrics.evaluate_alarms_by_their_own_metric()
    resources.know_sagemaker_resources()
    resources.keep_what_a_failed_resource_needs()
    resources.scale_inference_components()
    permissions.count_the_loopback_as_secure()
    permissions.match_every_character_of_an_arn()
    permissions.know_the_condition_keys_of_requests()
    permissions.know_the_role_behind_a_session()
    permissions.hide_missing_objects()
    permissions.ask_for_the_key_of_an_object()
