//! The statements, each prepared once per connection. `@` stands for the schema.

/// A statement.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Sql {
    Read,
    Begin,
    Apply,
    Mark,
    Drop,
    Scan,
    Expired,
    Walk,
    Free,
    Namespaces,
    Usage,
    LastStamp,
    Ping,
    Quarantined,
    ForgetQuarantined,
    Log,
    Lease,
    Extend,
    Release,
    ReleaseAll,
    LeaseInfo,
}

/// Why an entry `e` of a namespace `n` is none: 0 for a valid one. `$now` and `$distrusted` are parameters.
macro_rules! why_invalid {
    ($now:literal, $distrusted:literal) => {
        concat!(
            "CASE WHEN e.seen < n.clear THEN 3
                  WHEN e.seen < n.marked AND e.tags IS NOT NULL
                       AND EXISTS (SELECT 1 FROM @.mark m WHERE m.ns = n.id AND m.tag = ANY (e.tags) AND m.pos > e.seen)
                  THEN 4
                  WHEN e.stamp >= ",
            $distrusted,
            "::bytea THEN 5 WHEN e.gone_at <= ",
            $now,
            "::int8 THEN 2 ELSE 0 END"
        )
    };
}

impl Sql {
    pub(super) const COUNT: usize = Sql::LeaseInfo as usize + 1;

    pub(super) fn text(self, schema: &str) -> String {
        let text = match self {
            // One snapshot: the position is not later than the entries, and not older than their removals.
            Sql::Read => concat!(
                "SELECT w.place, n.inc, n.pos, CASE WHEN e.seen IS NULL THEN 1 ELSE ",
                why_invalid!("$4", "$5"),
                " END, e.sealed
                 FROM unnest($1::text[], $2::int8[], $3::bytea[]) WITH ORDINALITY AS w (name, hash, key, place)
                 LEFT JOIN @.ns n ON n.name = w.name
                 LEFT JOIN @.entry e ON e.ns = n.id AND e.hash = w.hash AND e.key = w.key"
            ),
            Sql::Begin => "SELECT inc, pos FROM @.begin_1($1::text[])",
            Sql::Apply => {
                "SELECT outcomes, rivals FROM @.apply_1($1::text[], $2::int4[], $3::bool[], $4::text, $5::int8, \
                 $6::bytea, $7::bool, $8::int2[], $9::int8[], $10::bytea[], $11::int8[], $12::int8[], $13::bytea[], \
                 $14::int8[], $15::int8[], $16::int4[], $17::bytea[], $18::bytea[])"
            }
            Sql::Mark => "SELECT @.mark_1($1::text, $2::text, $3::int8, $4::bytea, $5::int8, $6::text)",
            Sql::Drop => "SELECT @.drop_1($1::text, $2::int8[], $3::bytea[], $4::int8)",
            Sql::Scan => concat!(
                "SELECT e.hash, e.key, e.gone_at, e.bytes, ",
                why_invalid!("$5", "$6"),
                " FROM (SELECT ns, hash, key, seen, gone_at, tags, stamp, octet_length(sealed)::int8 AS bytes
                        FROM @.entry WHERE ns = (SELECT id FROM @.ns WHERE name = $1::text)
                        AND (hash, key) > ($2::int8, $3::bytea)
                        ORDER BY hash, key LIMIT $4::int8) e
                 JOIN @.ns n ON n.id = e.ns ORDER BY e.hash, e.key"
            ),
            // What another transaction works on is left to the next sweep.
            Sql::Expired => {
                "WITH gone AS MATERIALIZED (SELECT ctid AS at FROM @.entry WHERE gone_at <= $1::int8 \
                 ORDER BY gone_at LIMIT $2::int8 FOR UPDATE SKIP LOCKED), \
                 freed AS (DELETE FROM @.entry WHERE ctid = ANY (ARRAY(SELECT at FROM gone)) RETURNING 1) \
                 SELECT count(*) FROM freed"
            }
            Sql::Walk => concat!(
                "SELECT e.ns, e.hash, e.key, e.seen, ",
                // A stamp that is not trusted yet may be later.
                why_invalid!("$4", "'\\xffffffffffffffffffffffffff'"),
                " FROM (SELECT ns, hash, key, seen, gone_at, tags, stamp FROM @.entry
                        WHERE (ns, hash, key) > ($1::int4, $2::int8, $3::bytea)
                        ORDER BY ns, hash, key LIMIT $5::int8) e
                 JOIN @.ns n ON n.id = e.ns ORDER BY e.ns, e.hash, e.key"
            ),
            Sql::Free => {
                "WITH gone AS MATERIALIZED (SELECT e.ctid AS at \
                 FROM unnest($1::int4[], $2::int8[], $3::bytea[], $4::int8[]) AS w (ns, hash, key, seen) \
                 JOIN @.entry e ON e.ns = w.ns AND e.hash = w.hash AND e.key = w.key AND e.seen = w.seen \
                 FOR UPDATE OF e SKIP LOCKED), \
                 freed AS (DELETE FROM @.entry WHERE ctid = ANY (ARRAY(SELECT at FROM gone)) RETURNING 1) \
                 SELECT count(*) FROM freed"
            }
            Sql::Namespaces => {
                "SELECT n.name FROM @.ns n WHERE EXISTS (SELECT 1 FROM @.entry e WHERE e.ns = n.id) ORDER BY n.name"
            }
            // Of a large table what the server last counted for itself.
            Sql::Usage => {
                "SELECT CASE WHEN t.many THEN t.reltuples::int8 ELSE (SELECT count(*) FROM @.entry) END, \
                 CASE WHEN t.many THEN pg_total_relation_size(t.oid) ELSE \
                 (SELECT coalesce(sum(96 + octet_length(key) + 8 * coalesce(cardinality(tags), 0) \
                                      + octet_length(sealed)), 0)::int8 FROM @.entry) END \
                 FROM (SELECT oid, reltuples, reltuples > 100000 AS many FROM pg_class \
                       WHERE oid = '@.entry'::regclass) t"
            }
            Sql::LastStamp => {
                "SELECT last_stamp FROM @.ns WHERE last_stamp IS NOT NULL ORDER BY last_stamp DESC LIMIT 1"
            }
            Sql::Ping => "SELECT 1 FROM @.meta",
            Sql::Quarantined => {
                "SELECT at_ms, reason, namespace, key, sealed_bytes, sealed FROM @.quarantine ORDER BY id"
            }
            Sql::ForgetQuarantined => "DELETE FROM @.quarantine",
            // One snapshot of all stores, so that a record can't be missing from between two positions.
            Sql::Log => {
                "SELECT w.place, n.inc, n.pos, l.pos, l.kind, l.name, l.origin, encode(l.stamp, 'hex') \
                 FROM unnest($1::text[], $2::int8[], $3::int8[]) WITH ORDINALITY AS w (name, inc, pos, place) \
                 LEFT JOIN @.ns n ON n.name = w.name \
                 LEFT JOIN LATERAL (SELECT * FROM @.log r WHERE r.ns = n.id AND n.inc = w.inc AND r.pos > w.pos \
                                    ORDER BY r.pos LIMIT $4::int8) l ON true"
            }
            Sql::Lease => "SELECT o_token, o_left_ms FROM @.lease_1($1::bytea, $2::bytea, $3::int8, $4::int8)",
            Sql::Extend => {
                "UPDATE @.lease SET until = clock_timestamp() + $4::int8 * interval '1 ms' WHERE name = $1::bytea \
                 AND owner = $2::bytea AND claim = $3::int8 AND until > clock_timestamp() RETURNING token"
            }
            Sql::Release => {
                "DELETE FROM @.lease WHERE name = $1::bytea AND owner = $2::bytea AND claim = $3::int8 \
                 AND until > clock_timestamp() RETURNING token"
            }
            Sql::ReleaseAll => {
                "WITH freed AS (DELETE FROM @.lease WHERE owner = $1::bytea RETURNING until) \
                 SELECT count(*) FROM freed WHERE until > clock_timestamp()"
            }
            Sql::LeaseInfo => {
                "SELECT owner, token, ceil(extract(epoch FROM until - clock_timestamp()) * 1000)::int8 \
                 FROM @.lease WHERE name = $1::bytea AND until > clock_timestamp()"
            }
        };
        text.replace("@.", &format!("{schema}."))
    }
}
