-- Version 1. `@` stands for the schema, `$persistence` for UNLOGGED or nothing. A released version is never
-- edited: the next one gets a file of its own, and its functions names of their own, because nodes of two
-- versions may be at work while an upgrade goes on.

CREATE TABLE @.meta (
    id int2 PRIMARY KEY CHECK (id = 1),
    version int4 NOT NULL,
    identity text NOT NULL       -- which cluster, timeline and table this was written on
);
INSERT INTO @.meta VALUES (1, 0, '');

-- One row per namespace. It changes with every mutation, so its page keeps room for the next versions.
CREATE $persistence TABLE @.ns (
    id int4 PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    name text COLLATE "C" NOT NULL UNIQUE,
    inc int8 NOT NULL,           -- incarnation, a random u64
    pos int8 NOT NULL,           -- moved by every removal, marker and accepted set
    clear int8 NOT NULL,         -- what was written before is invalid
    floor int8 NOT NULL,         -- what began before is refused; what is stored stays valid
    marked int8 NOT NULL,        -- position of the last tag's marker
    marks int8 NOT NULL,         -- rows of mark
    last_stamp bytea             -- greatest stamp of an accepted set
) WITH (fillfactor = 10);

CREATE $persistence TABLE @.entry (
    ns int4 NOT NULL,
    hash int8 NOT NULL,          -- of namespace and key, a u64
    key bytea NOT NULL,
    seen int8 NOT NULL,          -- position at its write
    gone_at int8,                -- wall clock ms less 2^63, so that all of u64 keeps its order; NULL is never
    kind int2 NOT NULL,          -- 0 load, 1 set
    stamp bytea NOT NULL,
    tags int8[],                 -- their hashes; NULL is none
    sealed bytea NOT NULL,
    PRIMARY KEY (ns, hash, key)
);
-- Envelopes are compressed or encrypted already.
ALTER TABLE @.entry ALTER COLUMN sealed SET STORAGE EXTERNAL;
CREATE INDEX entry_gone_at ON @.entry (gone_at) WHERE gone_at IS NOT NULL;

CREATE $persistence TABLE @.fence (
    ns int4 NOT NULL,
    h int2 NOT NULL,             -- hash mod 4096
    r int8 NOT NULL,             -- position of the last removal
    s int8 NOT NULL,             -- position of the last accepted set
    PRIMARY KEY (ns, h)
) WITH (fillfactor = 50);

CREATE $persistence TABLE @.mark (
    ns int4 NOT NULL,
    tag int8 NOT NULL,           -- its hash
    pos int8 NOT NULL,
    PRIMARY KEY (ns, tag)
);

-- What happened, one row per position and without holes: a position is taken under the lock that its commit
-- releases. The last 10,000 of each namespace.
CREATE $persistence TABLE @.log (
    ns int4 NOT NULL,
    pos int8 NOT NULL,
    kind text NOT NULL,          -- s set, r removal, t tag, c clear, f floor, p pattern removed
    name bytea NOT NULL,         -- the key, tag or pattern
    origin text NOT NULL,        -- which backend, in which run of its process
    stamp bytea,                 -- of a set
    PRIMARY KEY (ns, pos)
);

CREATE $persistence TABLE @.quarantine (
    id int8 PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    at_ms int8 NOT NULL,
    reason text NOT NULL,
    namespace text NOT NULL,
    key bytea NOT NULL,
    sealed_bytes int8 NOT NULL,
    sealed bytea                 -- NULL where it was too large to keep
);

-- A namespace, with its lock until the transaction ends: exclusive for what moves its position, shared for
-- loads and for what only drops or reseals. Advisory locks are granted in the order of asking. A row lock that
-- readers share is not: loads that never pause would keep a removal waiting forever.
CREATE FUNCTION @.lock_1(p_name text, p_exclusive bool) RETURNS @.ns LANGUAGE plpgsql AS $f$
DECLARE
    n @.ns%ROWTYPE;
    v_class int4 := '@.ns'::regclass::oid::int4;
BEGIN
    -- Each statement has to see what was committed while the one before it waited.
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION USING ERRCODE = '25001', MESSAGE = 'isolation';
    END IF;
    SELECT * INTO n FROM @.ns WHERE name = p_name;
    IF NOT FOUND THEN
        INSERT INTO @.ns (name, inc, pos, clear, floor, marked, marks)
        VALUES (p_name, ('x' || substr(replace(gen_random_uuid()::text, '-', ''), 1, 8)
                             || substr(replace(gen_random_uuid()::text, '-', ''), 1, 8))::bit(64)::int8,
                1, 0, 0, 1, 0)
        ON CONFLICT (name) DO NOTHING;
        SELECT * INTO STRICT n FROM @.ns WHERE name = p_name;
    END IF;
    IF p_exclusive THEN
        PERFORM pg_advisory_xact_lock(v_class, n.id);
    ELSE
        PERFORM pg_advisory_xact_lock_shared(v_class, n.id);
    END IF;
    SELECT * INTO STRICT n FROM @.ns WHERE name = p_name;
    RETURN n;
END $f$;

-- A ticket of each namespace; begins those that are new.
CREATE FUNCTION @.begin_1(p_names text[]) RETURNS TABLE (inc int8, pos int8) LANGUAGE plpgsql AS $f$
DECLARE
    n @.ns%ROWTYPE;
    v_name text;
BEGIN
    FOREACH v_name IN ARRAY p_names LOOP
        SELECT * INTO n FROM @.ns WHERE name = v_name;
        IF NOT FOUND THEN
            n := @.lock_1(v_name, false);
        END IF;
        inc := n.inc;
        pos := n.pos;
        RETURN NEXT;
    END LOOP;
END $f$;

CREATE FUNCTION @.is_marked_1(p_ns int4, p_tags int8[], p_pos int8) RETURNS bool LANGUAGE sql STABLE AS $f$
    SELECT EXISTS (SELECT 1 FROM @.mark WHERE ns = p_ns AND tag = ANY (p_tags) AND pos > p_pos)
$f$;

-- Ends a mutation: the namespace's row, the log's bound, the hints. Of a batch that is larger than a node would
-- apply at once the first ones do: who gets them asks for the rest.
CREATE FUNCTION @.save_1(n @.ns, p_before int8) RETURNS void LANGUAGE plpgsql AS $f$
BEGIN
    UPDATE @.ns SET pos = n.pos, clear = n.clear, floor = n.floor, marked = n.marked, marks = n.marks,
                    last_stamp = n.last_stamp
    WHERE id = n.id;
    -- A few hundred at once: a deletion per record would cost as much as the record.
    IF p_before / 256 <> n.pos / 256 THEN
        DELETE FROM @.log WHERE ns = n.id AND pos <= n.pos - 10000;
    END IF;
    PERFORM pg_notify('@', concat_ws(' ', l.pos, l.kind, l.origin, encode(coalesce(l.stamp, ''), 'hex'),
                                     encode(l.name, 'hex'), n.name))
    FROM (SELECT * FROM @.log WHERE ns = n.id AND pos > p_before ORDER BY pos LIMIT 64) l;
END $f$;

-- Operations on entries, sorted by namespace, hash and key, in one transaction. Kinds: 0 load, 1 set, 2 remove,
-- 3 discard, 4 exchange, 5 quarantine. Outcomes: 0 stored (nothing there), 1 fenced (something was there),
-- 2 older, with the later stamp.
CREATE FUNCTION @.apply_1(
    p_names text[], p_ends int4[], p_exclusive bool[], p_origin text, p_now int8, p_distrusted bytea, p_lasting bool,
    p_kinds int2[], p_hashes int8[], p_keys bytea[], p_incs int8[], p_began int8[], p_stamps bytea[], p_gone int8[],
    p_tags int8[], p_tag_ends int4[], p_bodies bytea[], p_others bytea[],
    OUT outcomes int2[], OUT rivals bytea[]
) LANGUAGE plpgsql AS $f$
DECLARE
    n @.ns%ROWTYPE;
    k int4 := 1;
    v_before int8;
    v_hash int8;
    v_key bytea;
    v_began int8;
    v_tags int8[];
    v_tag_start int4 := 1;
    v_found bool;
    v_r int8; v_s int8;
    v_seen int8; v_kind int2; v_stamp bytea; v_etags int8[]; v_gone int8;
    v_rival bytea;
    v_fenced bool;
BEGIN
    outcomes := array_fill(0::int2, ARRAY[cardinality(p_kinds)]);
    rivals := array_fill(NULL::bytea, ARRAY[cardinality(p_kinds)]);
    IF NOT p_lasting THEN
        -- A load that a crash loses is a miss; nobody has to wait for the disk.
        PERFORM set_config('synchronous_commit', 'off', true);
    END IF;
    FOR i IN 1 .. cardinality(p_names) LOOP
        n := @.lock_1(p_names[i], p_exclusive[i]);
        v_before := n.pos;
        WHILE k <= p_ends[i] LOOP
            v_hash := p_hashes[k];
            v_key := p_keys[k];
            IF p_kinds[k] = 0 THEN
                v_began := p_began[k];
                v_tags := p_tags[v_tag_start : p_tag_ends[k]];
                SELECT r, s INTO v_r, v_s FROM @.fence WHERE ns = n.id AND h = (v_hash & 4095)::int2;
                IF p_incs[k] <> n.inc OR greatest(v_r, v_s, n.clear, n.floor) > v_began
                   OR (n.marked > v_began AND cardinality(v_tags) > 0 AND @.is_marked_1(n.id, v_tags, v_began)) THEN
                    outcomes[k] := 1;
                ELSE
                    INSERT INTO @.entry AS e (ns, hash, key, seen, gone_at, kind, stamp, tags, sealed)
                    VALUES (n.id, v_hash, v_key, n.pos, p_gone[k], 0, p_stamps[k], nullif(v_tags, '{}'), p_bodies[k])
                    ON CONFLICT (ns, hash, key) DO UPDATE SET seen = excluded.seen, gone_at = excluded.gone_at,
                        kind = 0, stamp = excluded.stamp, tags = excluded.tags, sealed = excluded.sealed;
                END IF;
            ELSIF p_kinds[k] = 1 THEN
                v_began := p_began[k];
                v_tags := p_tags[v_tag_start : p_tag_ends[k]];
                SELECT seen, kind, stamp, tags, gone_at INTO v_seen, v_kind, v_stamp, v_etags, v_gone
                FROM @.entry WHERE ns = n.id AND hash = v_hash AND key = v_key;
                v_found := FOUND;
                v_rival := NULL;
                IF v_found AND v_kind = 1 AND v_seen >= n.clear AND (v_gone IS NULL OR v_gone > p_now)
                   AND v_stamp < p_distrusted
                   AND NOT (v_seen < n.marked AND v_etags IS NOT NULL AND @.is_marked_1(n.id, v_etags, v_seen)) THEN
                    v_rival := v_stamp;
                END IF;
                -- Stamps before fences: a refused set acts as a removal, which a later set doesn't deserve.
                IF v_rival >= p_stamps[k] THEN
                    outcomes[k] := 2;
                    rivals[k] := v_rival;
                ELSE
                    SELECT r, s INTO v_r, v_s FROM @.fence WHERE ns = n.id AND h = (v_hash & 4095)::int2;
                    v_fenced := p_incs[k] <> n.inc OR greatest(v_r, n.clear, n.floor) > v_began
                        OR (v_rival IS NULL AND coalesce(v_s, 0) > v_began)
                        OR (n.marked > v_began AND cardinality(v_tags) > 0 AND @.is_marked_1(n.id, v_tags, v_began));
                    n.pos := n.pos + 1;
                    IF v_fenced THEN
                        -- A refused set must not leave an older value behind.
                        DELETE FROM @.entry WHERE ns = n.id AND hash = v_hash AND key = v_key;
                        INSERT INTO @.fence VALUES (n.id, (v_hash & 4095)::int2, n.pos, 0)
                        ON CONFLICT (ns, h) DO UPDATE SET r = excluded.r;
                        INSERT INTO @.log VALUES (n.id, n.pos, 'r', v_key, p_origin, NULL);
                        outcomes[k] := 1;
                    ELSE
                        INSERT INTO @.fence VALUES (n.id, (v_hash & 4095)::int2, 0, n.pos)
                        ON CONFLICT (ns, h) DO UPDATE SET s = excluded.s;
                        IF v_found THEN
                            UPDATE @.entry SET seen = n.pos, gone_at = p_gone[k], kind = 1, stamp = p_stamps[k],
                                tags = nullif(v_tags, '{}'), sealed = p_bodies[k]
                            WHERE ns = n.id AND hash = v_hash AND key = v_key;
                            -- A discard or a sweep may have taken it in between.
                            v_found := FOUND;
                        END IF;
                        IF NOT v_found THEN
                            INSERT INTO @.entry (ns, hash, key, seen, gone_at, kind, stamp, tags, sealed)
                            VALUES (n.id, v_hash, v_key, n.pos, p_gone[k], 1, p_stamps[k], nullif(v_tags, '{}'),
                                    p_bodies[k]);
                        END IF;
                        IF p_stamps[k] < p_distrusted AND (n.last_stamp IS NULL OR n.last_stamp < p_stamps[k]) THEN
                            n.last_stamp := p_stamps[k];
                        END IF;
                        INSERT INTO @.log VALUES (n.id, n.pos, 's', v_key, p_origin, p_stamps[k]);
                    END IF;
                END IF;
            ELSIF p_kinds[k] = 2 THEN
                n.pos := n.pos + 1;
                DELETE FROM @.entry WHERE ns = n.id AND hash = v_hash AND key = v_key
                RETURNING seen, kind, stamp, tags, gone_at INTO v_seen, v_kind, v_stamp, v_etags, v_gone;
                IF FOUND AND v_seen >= n.clear AND (v_gone IS NULL OR v_gone > p_now) AND v_stamp < p_distrusted
                   AND NOT (v_seen < n.marked AND v_etags IS NOT NULL AND @.is_marked_1(n.id, v_etags, v_seen)) THEN
                    outcomes[k] := 1;
                END IF;
                INSERT INTO @.fence VALUES (n.id, (v_hash & 4095)::int2, n.pos, 0)
                ON CONFLICT (ns, h) DO UPDATE SET r = excluded.r;
                INSERT INTO @.log VALUES (n.id, n.pos, 'r', v_key, p_origin, NULL);
            ELSIF p_kinds[k] = 4 THEN
                UPDATE @.entry SET sealed = p_others[k]
                WHERE ns = n.id AND hash = v_hash AND key = v_key AND sealed = p_bodies[k];
                outcomes[k] := FOUND::int4;
            ELSE
                DELETE FROM @.entry WHERE ns = n.id AND hash = v_hash AND key = v_key AND sealed = p_bodies[k];
                outcomes[k] := FOUND::int4;
                IF FOUND AND p_kinds[k] = 5 THEN
                    INSERT INTO @.quarantine (at_ms, reason, namespace, key, sealed_bytes, sealed)
                    VALUES (p_now, convert_from(p_others[k], 'UTF8'), n.name, v_key, octet_length(p_bodies[k]),
                            CASE WHEN octet_length(p_bodies[k]) <= 262144 THEN p_bodies[k] END);
                    DELETE FROM @.quarantine WHERE id <= (SELECT max(id) FROM @.quarantine) - 64;
                END IF;
            END IF;
            v_tag_start := p_tag_ends[k] + 1;
            k := k + 1;
        END LOOP;
        IF n.pos > v_before THEN
            PERFORM @.save_1(n, v_before);
        END IF;
    END LOOP;
END $f$;

-- Moves a marker: kinds t, c, f and p of the log. At most `p_most` tags are kept: beyond, the older half goes,
-- and what it would have invalidated is cleared.
CREATE FUNCTION @.mark_1(p_name text, p_kind text, p_tag int8, p_text bytea, p_most int8, p_origin text, OUT pos int8)
LANGUAGE plpgsql AS $f$
DECLARE
    n @.ns%ROWTYPE;
    v_before int8;
    v_highest int8;
    v_dropped int8;
BEGIN
    n := @.lock_1(p_name, true);
    v_before := n.pos;
    n.pos := n.pos + 1;
    IF p_kind = 't' THEN
        n.marked := n.pos;
        UPDATE @.mark m SET pos = n.pos WHERE m.ns = n.id AND m.tag = p_tag;
        IF NOT FOUND THEN
            INSERT INTO @.mark VALUES (n.id, p_tag, n.pos);
            n.marks := n.marks + 1;
        END IF;
        IF n.marks > p_most THEN
            SELECT m.pos INTO v_highest FROM @.mark m WHERE m.ns = n.id ORDER BY m.pos OFFSET n.marks / 2 LIMIT 1;
            DELETE FROM @.mark m WHERE m.ns = n.id AND m.pos <= v_highest;
            GET DIAGNOSTICS v_dropped = ROW_COUNT;
            n.marks := n.marks - v_dropped;
            n.clear := greatest(n.clear, v_highest);
        END IF;
    ELSIF p_kind = 'c' THEN
        n.clear := n.pos;
    ELSIF p_kind = 'f' THEN
        n.floor := n.pos;
    END IF;
    INSERT INTO @.log VALUES (n.id, n.pos, p_kind, p_text, p_origin, NULL);
    PERFORM @.save_1(n, v_before);
    pos := n.pos;
END $f$;

-- Deletes entries that were written before a position, in the order in which everybody locks them.
CREATE FUNCTION @.drop_1(p_name text, p_hashes int8[], p_keys bytea[], p_before int8) RETURNS int8
LANGUAGE plpgsql AS $f$
DECLARE
    n @.ns%ROWTYPE;
    v_dropped int8 := 0;
BEGIN
    n := @.lock_1(p_name, false);
    FOR k IN 1 .. cardinality(p_hashes) LOOP
        DELETE FROM @.entry WHERE ns = n.id AND hash = p_hashes[k] AND key = p_keys[k] AND seen < p_before;
        v_dropped := v_dropped + FOUND::int4;
    END LOOP;
    RETURN v_dropped;
END $f$;

-- What was written on another cluster, another timeline or other tables may lack a removal: everything goes, and
-- with it every incarnation.
CREATE FUNCTION @.settle_1(p_system text) RETURNS bool LANGUAGE plpgsql AS $f$
DECLARE
    v_identity text := p_system || '.' || '@.ns'::regclass::oid;
    v_known text;
BEGIN
    SELECT identity INTO STRICT v_known FROM @.meta FOR UPDATE;
    IF v_known = v_identity THEN
        RETURN false;
    END IF;
    -- `ns` first: it is the first that every other transaction touches, so nobody waits in a circle.
    TRUNCATE @.ns, @.mark, @.fence, @.log, @.entry;
    UPDATE @.meta SET identity = v_identity;
    RETURN v_known <> '';
END $f$;

-- Leases. A row stays behind when a holder dies; whoever comes next takes it over.
CREATE $persistence TABLE @.lease (
    name bytea PRIMARY KEY,
    owner bytea NOT NULL,
    claim int8 NOT NULL,         -- tells an owner's claims apart, a random u64
    token int8 NOT NULL,
    until timestamptz NOT NULL
) WITH (fillfactor = 50);
-- Logged, though leases may not be: tokens grow over crashes.
CREATE SEQUENCE @.lease_token;

-- Gives the lock to the claim, or says how long another one has it. A token is drawn after the row was read that it
-- replaces, and again if that row has changed meanwhile: so the tokens of a name grow in the order of its holders.
CREATE FUNCTION @.lease_1(p_name bytea, p_owner bytea, p_claim int8, p_ttl_ms int8, OUT o_token int8, OUT o_left_ms int8)
LANGUAGE plpgsql AS $f$
BEGIN
    FOR attempt IN 1 .. 8 LOOP
        UPDATE @.lease SET owner = p_owner, claim = p_claim, until = clock_timestamp() + p_ttl_ms * interval '1 ms',
            token = CASE WHEN claim = p_claim AND owner = p_owner AND until > clock_timestamp() THEN token
                         ELSE nextval('@.lease_token') END
        WHERE name = p_name AND (until <= clock_timestamp() OR claim = p_claim AND owner = p_owner)
        RETURNING token INTO o_token;
        IF FOUND THEN
            RETURN;
        END IF;
        SELECT ceil(extract(epoch FROM until - clock_timestamp()) * 1000)::int8 INTO o_left_ms
        FROM @.lease WHERE name = p_name AND until > clock_timestamp();
        IF FOUND THEN
            RETURN;
        END IF;
        -- Nobody's, for the next attempt to take. The dead of long ago make room now and then.
        INSERT INTO @.lease VALUES (p_name, '', 0, 0, '-infinity') ON CONFLICT DO NOTHING;
        IF random() < 0.01 THEN
            DELETE FROM @.lease WHERE name IN (
                SELECT name FROM @.lease WHERE until < clock_timestamp() - interval '1 hour' AND name <> p_name
                LIMIT 1000 FOR UPDATE SKIP LOCKED);
        END IF;
    END LOOP;
    -- Others were quicker, again and again.
    o_left_ms := 1;
END $f$;
