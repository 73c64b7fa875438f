"""The one place that names the methods which need no permission.

Health (`grpc.health.v1`) is open too, and doesn't go through the pipeline. Everything else
needs the permission that its contract states; a method without one isn't served.
"""

PUBLIC = frozenset(
    {
        "/weft.auth.v1.AuthService/ExchangeToken",
        "/weft.auth.v1.AuthService/GetJwks",
    }
)
"""Need no credential: the key to exchange is in the request, and public keys are public."""

REFLECTION = tuple(
    f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
    for version in ("v1alpha", "v1")
)

FOR_EVERY_CALLER = frozenset({"/weft.auth.v1.AuthService/WhoAmI", *REFLECTION})
"""Need a credential and no permission: everybody may know who they are, and what there is
to call."""
