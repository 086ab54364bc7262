"""The handlings that `tests/fault/taken_out.py` takes out, one at a time, and the tests that must fail then.

The rows are those of docs/faults.md. What the core decides is not here: `tests/property/seeds.py` has it.
"""

from typing import NamedTuple


class Handling(NamedTuple):
    """What is done about the fault `row`: `text`, which is in `file` exactly once. `instead` stands there when it is
    taken out; then each of `tests` fails: paths from `tests/`, marked as tests of that row."""

    row: int
    what: str
    file: str
    text: str
    instead: str
    tests: tuple[str, ...]


WORKER_DIES = (
    Handling(1, "a run that no worker has read goes to another", "orpheusd/process/channel.py",
             "self.undelivered.add(self.last_run)", "pass",
             ("fault/test_worker_dies.py::test_a_run_that_no_worker_had_read_goes_to_another",)),
    Handling(2, "no core is written", "orpheusd/worker/confinement.py",
             "_limit(resource.RLIMIT_CORE, 0)", "pass",
             ("fault/test_worker_dies.py::test_no_core_is_written",)),
    Handling(5, "a worker has exited only when its channel is at its end", "orpheusd/process/processes.py",
             "if not (worker.eof and worker.dead and", "if not (worker.dead and",
             ("integration/test_last_words.py::test_an_answer_counts_although_the_death_is_known_before_it",)),
    Handling(8, "templates, workers and builds are offered to the kernel first", "orpheusd/process/launch.py",
             "(self._inner or self._outer).make_expendable()", "pass",
             ("fault/test_worker_dies.py::test_the_kernel_takes_a_worker_before_the_daemon",
              "integration/test_build_walls.py::test_a_build_is_confined_as_an_agent_is")),
    Handling(12, "what a dead worker leaves is swept", "orpheusd/worker/children.py",
             "if not self._sweep_due:", "if True:",
             ("fault/test_worker_dies.py::test_what_a_worker_started_dies_with_it",
              "integration/test_worker_side.py::test_a_dead_worker_leaves_no_process")),
)

WORKER_MISBEHAVES = (
    Handling(16, "lines of no run have a limit", "orpheusd/process/allowance.py",
             "if not self._bucket.take(cost_bytes, time.monotonic()):", "if False:",
             ("unit/test_process_allowance.py::test_what_means_nothing_is_heard_for_a_while",)),
    Handling(16, "a flood takes turns with others", "orpheusd/process/channel.py",
             "self._link.receive(data, TURN_MESSAGES)", "self._link.receive(data)",
             ("integration/test_shares.py::test_who_says_little_is_heard_in_the_midst_of_a_flood",)),
    Handling(17, "who breaks the protocol is killed", "orpheusd/process/processes.py",
             "self._sinks.event(ev.WorkerMisbehaved(channel.owner, detail))\n"
             '            self.kill(channel.owner, f"protocol violation: {detail}")', "pass",
             ("integration/test_black_box.py::test_a_worker_that_breaks_the_protocol_is_killed_for_that",)),
    Handling(19, "the daemon measures results itself", "orpheusd/said.py",
             'if len(message.payload) > RESULT_LIMIT_BYTES and fields["state"] == "completed":', "if False:",
             ("fault/test_worker_misbehaves.py::test_a_forged_result_over_the_limit_is_not_passed_on",)),
    Handling(20, "the daemon reads results itself", "orpheusd/said.py",
             "if not is_json(message.payload):", "if False:",
             ("fault/test_worker_misbehaves.py::test_a_forged_result_is_passed_on_only_as_strict_json",)),
    Handling(20, "the worker writes no NaN", "orpheusd/worker/results.py",
             "allow_nan=False", "allow_nan=True",
             ("integration/test_worker_side_runs.py::test_a_result_that_json_cannot_carry_fails_and_says_where",)),
    Handling(26, "blocked signals are put back after a run", "orpheusd/worker/sync_runs.py",
             "signal.pthread_sigmask(signal.SIG_SETMASK, self._blocked)", "pass",
             ("fault/test_worker_misbehaves.py::test_the_next_run_finds_its_surroundings_as_they_were",)),
    Handling(28, "what is returned after a stop is dropped", "orpheusd/worker/sync_runs.py",
             "        if doorbell.reason is not None:\n            return told(doorbell.reason, RETURNED)", "",
             ("fault/test_worker_misbehaves.py::test_a_late_answer_reaches_nobody",)),
)

DAEMON_DIES = (
    Handling(31, "accepted runs that never started are queued again", "orpheusd/recorder.py",
             'self.accepted_before = [one for one in left if one.run.detached and one.run.state == "queued"]',
             "self.accepted_before = list[RunDetail]()",
             ("integration/test_async_runs.py::test_what_waits_at_a_restart_is_executed_after_it",)),
    Handling(32, "a run is handed over once its start is written", "orpheusd/detached.py",
             "if self._begun.setdefault(run_id, False):", "if not self._begun.setdefault(run_id, False):",
             ("unit/test_detached.py::test_a_run_is_handed_over_once_its_start_is_written",)),
    Handling(33, "a worker keeps a result until the log has it", "orpheusd/worker/holdings.py",
             'held = self.runs.get(fields["run_id"])', 'held = self.runs.pop(fields["run_id"], None)',
             ("fault/test_daemon_dies.py::test_a_kill_at_each_point_of_a_run",)),
    Handling(36, "the next daemon listens for what the last one left", "orpheusd/deployments.py",
             "orphans = self._engine.processes.orphans()", "orphans = list[Record]()",
             ("fault/test_daemon_dies.py::test_a_run_outlives_the_daemon_and_its_session_goes_on",)),
    Handling(39, "who speaks another protocol is killed", "orpheusd/process/processes.py",
             'if message.fields["protocol"] != PROTOCOL_VERSION:', "if False:",
             ("fault/test_daemon_dies.py::test_who_says_hello_wrongly_is_never_believed",)),
    Handling(40, "a hello without the nonce is not believed", "orpheusd/process/members.py",
             "home == self.id and nonce == self.nonce", "home == self.id",
             ("fault/test_daemon_dies.py::test_who_says_hello_wrongly_is_never_believed",)),
)

STORAGE = (
    Handling(47, "a full disk is waited out", "orpheusd/runlog/writer.py",
             "if disk_is_full(error):", "if False:",
             ("fault/test_runlog_disk.py::test_a_full_disk_is_waited_out",)),
    Handling(49, "each row's checksum is looked at", "orpheusd/runlog/inspection.py",
             "if not intact:", "if False:",
             ("fault/test_runlog_damage.py::test_damage_is_found_or_there_is_none",)),
    Handling(51, "ages mean nothing after the clock was set", "orpheusd/runlog/upkeep.py",
             "return now >= self._distrust_until", "return True",
             ("unit/test_runlog_retention.py::test_a_clock_that_was_set_deletes_nothing",)),
)

DOORS = (
    Handling(57, "the socket of a dead daemon is replaced", "orpheusd/doors/place.py",
             "temporary.rename(path)", "os.link(temporary, path)",
             ("fault/test_doors_start.py::test_after_a_kill_the_next_one_serves_at_once",)),
    Handling(61, "a stream holds so much and no more", "orpheusd/doors/http/streams.py",
             "if self._events and (", "if False and (",
             ("integration/test_http_door_streams.py::test_a_slow_reader_loses_its_stream_and_nothing_else",)),
    Handling(62, "a body is counted, not believed", "orpheusd/doors/http/body.py",
             "if size_bytes > self._limits.body_bytes:", "if False:",
             ("integration/test_http_door_guard.py::test_the_limit_is_counted_not_believed",)),
    Handling(64, "without descriptors nobody is accepted for a while", "orpheusd/doors/http/server.py",
             "if error.errno in _SHORTAGE:", "if False:",
             ("integration/test_http_door_guard.py::test_running_out_of_files_is_survived_and_said_briefly",)),
    Handling(66, "session ids have a form", "orpheusd/operations.py",
             'SESSION_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:@-]{0,127}", re.ASCII)',
             'SESSION_ID = re.compile(r"(?s:.*)")',
             ("fault/test_doors_http.py::test_what_is_no_session_id_is_refused_at_both_doors_and_leaves_nothing",
              "unit/test_operations.py::test_bad_session_ids_are_refused")),
    Handling(67, "control characters are escaped in the daemon's log", "orpheusd/__main__.py",
             'record.message = "".join(c if c.isprintable() else repr(c)[1:-1] for c in record.message)', "pass",
             ("unit/test_log_lines.py::test_no_control_character_is_written_raw",)),
    Handling(68, "the Host header must name this machine", "orpheusd/doors/http/head.py",
             "if not _HOST.fullmatch(host):", "if False:",
             ("integration/test_http_door_guard.py::test_other_hosts_are_refused",)),
)

DEPLOY = (
    Handling(73, "a version that fails its trial is not switched to", "orpheusd/deployments.py",
             "if verdict.error:", "if False:",
             ("integration/test_bad_input.py::test_a_broken_redeploy_leaves_the_old_version_serving",)),
    Handling(77, "a name in a bundle may not lead out of it", "orpheusd/deploy/bundle.py",
             'if ".." in parts:', "if False:",
             ("unit/test_deploy_bundle.py::test_a_hostile_shape_is_refused_and_leaves_nothing",)),
    Handling(78, "a version on trial is marked until it serves", "orpheusd/deploy/versions.py",
             '_write(stage_dir / "trial", "")', "pass",
             ("unit/test_deploy_versions.py::test_what_a_killed_deploy_left_on_trial_is_gone_at_the_next_start",)),
)

HANDLINGS = (*WORKER_DIES, *WORKER_MISBEHAVES, *DAEMON_DIES, *STORAGE, *DOORS, *DEPLOY)
