"""The control plane: what the registry knows, as gRPC's own xDS clients want it told.

`mesh_view` is what is known, `resources` and `endpoints` make the resources of it, `ads`
serves them, `subscriptions` is what one client wants and has, `bootstrap` points this
process's clients there, `control_plane` is all of it in one process. `names` are those that
both sides know, `messages` has Envoy's for the messages of `weft.xds.v1`.
"""
