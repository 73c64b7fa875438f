"""The tables of the embedded index, and how those of an older version become these.

Each collection has a full-text table `passages_<id>`, so that the weights of words come
from it alone, and, where it has vectors, a table `vectors_<id>`. The rowid of a passage is
its document's id times `PASSAGES_MAX`, plus its number in the document: the passages of a
document are a range of rowids.
"""

FORMAT_VERSION = 2
PASSAGES_MAX = 1 << 20
"""Most passages of one document."""

VERSION_1 = """
CREATE TABLE collections (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  tenant TEXT NOT NULL,
  name TEXT NOT NULL,
  description TEXT NOT NULL,
  create_time_ns INTEGER NOT NULL,
  UNIQUE (tenant, name)
);
CREATE TABLE documents (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  collection INTEGER NOT NULL,
  uri TEXT NOT NULL,
  title TEXT NOT NULL,
  passage_count INTEGER NOT NULL,
  UNIQUE (collection, uri)
);
CREATE TABLE requests (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  tenant TEXT NOT NULL,
  id TEXT NOT NULL,
  digest BLOB NOT NULL,
  documents INTEGER NOT NULL,
  passages INTEGER NOT NULL,
  UNIQUE (tenant, id)
);
PRAGMA user_version = 1;
"""
# The values of `attributes.value` keep the type that they are stored with.
VERSION_2 = """
ALTER TABLE collections ADD COLUMN dimension INTEGER NOT NULL DEFAULT 0;
ALTER TABLE collections ADD COLUMN metric TEXT NOT NULL DEFAULT 'cosine';
ALTER TABLE collections ADD COLUMN model TEXT NOT NULL DEFAULT '';
ALTER TABLE collections ADD COLUMN document_count INTEGER NOT NULL DEFAULT 0;
ALTER TABLE collections ADD COLUMN passage_count INTEGER NOT NULL DEFAULT 0;
ALTER TABLE documents ADD COLUMN digest BLOB NOT NULL DEFAULT x'';
ALTER TABLE documents ADD COLUMN metadata BLOB NOT NULL DEFAULT x'';
ALTER TABLE requests ADD COLUMN unchanged INTEGER NOT NULL DEFAULT 0;
UPDATE collections SET
  document_count = (SELECT count(*) FROM documents WHERE collection = collections.id),
  passage_count =
    (SELECT ifnull(sum(passage_count), 0) FROM documents WHERE collection = collections.id);
CREATE TABLE attributes (
  collection INTEGER NOT NULL,
  document INTEGER NOT NULL,
  key TEXT NOT NULL,
  kind TEXT NOT NULL,
  value NOT NULL
);
CREATE INDEX attributes_by_value ON attributes (collection, key, kind, value, document);
CREATE INDEX attributes_by_document ON attributes (document);
CREATE TABLE pages (passage INTEGER PRIMARY KEY, page INTEGER NOT NULL);
PRAGMA user_version = 2;
"""
CHANGES = (VERSION_1, VERSION_2)
"""What makes each version of the one before it; the first one of nothing."""
TOKENIZER = ("porter", ["unicode61", "remove_diacritics", "2"])


def passages_table(collection: int) -> str:
    """What makes the full-text table of a collection."""
    tokenizer = " ".join((TOKENIZER[0], *TOKENIZER[1]))
    return (
        f"CREATE VIRTUAL TABLE passages_{collection} USING"
        f" fts5(title, headings, text, line UNINDEXED, tokenize = '{tokenizer}')"
    )


def vectors_table(collection: int) -> str:
    """What makes the table of a collection's vectors. `square` is the square of the length."""
    return (
        f"CREATE TABLE vectors_{collection}"
        " (passage INTEGER PRIMARY KEY, square REAL NOT NULL, vector BLOB NOT NULL)"
    )
