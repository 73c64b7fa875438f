"""The tables of the index in PostgreSQL, in a schema of their own.

Each collection has a table `passages_<id>`, with an index over its words and one over its
vectors: so neither weights of words nor neighbours come from another collection. Texts are
bytes, since a `text` can't hold every string. What words there are says the same tokenizer
as in the embedded index, not one of PostgreSQL's.
"""

from services.vectors.domain.vectors import Metric

FORMAT_VERSION = 1
SCHEMA = "weft_vectors"
HNSW_DIMENSION_MAX = 2_000
"""Of pgvector; collections of more are looked through one by one."""

TABLES = f"""
CREATE SCHEMA IF NOT EXISTS {SCHEMA};
CREATE TABLE {SCHEMA}.format (version integer NOT NULL);
INSERT INTO {SCHEMA}.format VALUES ({FORMAT_VERSION});
CREATE TABLE {SCHEMA}.collections (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  tenant text COLLATE "C" NOT NULL,
  name text COLLATE "C" NOT NULL,
  description bytea NOT NULL,
  create_time_ns bigint NOT NULL,
  dimension integer NOT NULL,
  metric text NOT NULL,
  model text NOT NULL,
  document_count bigint NOT NULL DEFAULT 0,
  passage_count bigint NOT NULL DEFAULT 0,
  UNIQUE (tenant, name)
);
CREATE TABLE {SCHEMA}.documents (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  collection bigint NOT NULL REFERENCES {SCHEMA}.collections ON DELETE CASCADE,
  uri_digest bytea NOT NULL,
  uri bytea NOT NULL,
  title bytea NOT NULL,
  passage_count integer NOT NULL,
  digest bytea NOT NULL,
  metadata bytea NOT NULL,
  UNIQUE (collection, uri_digest)
);
CREATE TABLE {SCHEMA}.attributes (
  collection bigint NOT NULL,
  document bigint NOT NULL REFERENCES {SCHEMA}.documents ON DELETE CASCADE,
  key text COLLATE "C" NOT NULL,
  kind text COLLATE "C" NOT NULL,
  text text COLLATE "C",
  number double precision
);
CREATE INDEX attributes_by_text ON {SCHEMA}.attributes (collection, key, kind, text);
CREATE INDEX attributes_by_number ON {SCHEMA}.attributes (collection, key, kind, number);
CREATE INDEX attributes_by_document ON {SCHEMA}.attributes (document);
CREATE TABLE {SCHEMA}.requests (
  number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  tenant text NOT NULL,
  id text NOT NULL,
  digest bytea NOT NULL,
  documents bigint NOT NULL,
  passages bigint NOT NULL,
  unchanged bigint NOT NULL,
  UNIQUE (tenant, id)
);
"""
_OPERATORS = {
    Metric.COSINE: ("<=>", "vector_cosine_ops", "1 - "),
    Metric.DOT: ("<#>", "vector_ip_ops", "-"),
    Metric.L2: ("<->", "vector_l2_ops", "-"),
}


def operator_of(metric: Metric) -> tuple[str, str]:
    """The operator whose smallest result is nearest, and what before it makes a score."""
    operator, _, score = _OPERATORS[metric]
    return operator, score


def passages_table(collection: int, dimension: int, metric: Metric) -> str:
    """What makes the table of a collection's passages."""
    table = f"{SCHEMA}.passages_{collection}"
    vector = f", vector vector({dimension})" if dimension else ""
    made = f"""
CREATE TABLE {table} (
  id bigint PRIMARY KEY,
  document bigint NOT NULL REFERENCES {SCHEMA}.documents ON DELETE CASCADE,
  headings bytea NOT NULL,
  text bytea NOT NULL,
  line integer NOT NULL,
  page integer NOT NULL,
  words tsvector NOT NULL{vector}
);
CREATE INDEX ON {table} (document);
CREATE INDEX ON {table} USING gin (words);
"""
    if 0 < dimension <= HNSW_DIMENSION_MAX:
        made += f"CREATE INDEX ON {table} USING hnsw (vector {_OPERATORS[metric][1]});"
    return made
