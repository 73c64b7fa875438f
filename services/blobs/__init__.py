"""Blobs: bytes under names, sealed, in files or in an S3 bucket.

Owns      the objects, in `<data dir>/blobs/` or in a bucket; nothing else knows what there is
Serves    `weft.blobs.v1.BlobService`; over HTTP what a signed URL allows
Emits     BlobPut, BlobDeleted, BlobUrlSigned, for the audit
Consumes  no events; calls no other service

They aren't the payloads that the event store moves out of its commits
(`mesh.events.blobs`), which lie in NATS, belong to commits and have no names.
"""
