"""Functions: Python source that tenants deploy, run confined, one process per invocation.

Owns      deployed functions: the streams `functions.<tenant>.<function>`, their sources beside
          them; what they printed, in `<data dir>/functions/`
Serves    `weft.functions.v1.FunctionService`
Emits     FunctionDeployed, FunctionRolledBack, FunctionDeleted, SourceStored
Consumes  its own events, to know what every instance deployed; calls no other service
"""
