"""Running source that nobody trusts: one process for one invocation, confined before it sees
the source.

`syscalls` is the filter of system calls, `inside` what runs in the sandbox, `keeper` the
process that starts sandboxes, `backends` what confines them on this machine, `launcher`
Weft's side of a sandbox, `pool` those that are kept ready.
"""
