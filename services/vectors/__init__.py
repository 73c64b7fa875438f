"""Collections of documents, split into passages that can be searched by words and by vectors.

Owns      the collections, in `<data dir>/vectors.sqlite3` or in a PostgreSQL
Serves    `weft.vectors.v1.VectorService`
Emits     no events: a collection can always be made again from its documents
Consumes  no events; calls models, for the vectors of passages and queries
"""
