"""Collections of documents, split into passages that can be searched.

Owns      the collections, in `<data dir>/vectors.sqlite3`
Serves    `weft.vectors.v1.VectorService`
Emits     no events: a collection can always be made again from its documents
Consumes  no events; calls no other service
"""
