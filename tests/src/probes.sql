-- Index access methods that amcheck does not know: each index against a sequential scan of its table.
--
-- For every index that is not a btree and every operator of its first column that takes the column's own type (and
-- tsvector @@ tsquery), some values from the table: as many rows by the index as without it. NULL searches, where the
-- method has them, visit every entry. One line for each index and operator: name, method, operator, values tried,
-- values the operator refuses, rows, probes whose plan had this index, probes where index and table disagree.
\set ON_ERROR_STOP on
SET client_min_messages = warning;
SET jit = off;
SET max_parallel_workers_per_gather = 0;

CREATE FUNCTION pg_temp.set_scans(by_index bool) RETURNS void LANGUAGE sql AS $$
    SELECT set_config('enable_seqscan', (NOT by_index)::text, false),
           set_config('enable_indexscan', by_index::text, false),
           set_config('enable_indexonlyscan', by_index::text, false),
           set_config('enable_bitmapscan', by_index::text, false)
$$;

CREATE FUNCTION pg_temp.probes(OUT o_index text, OUT o_method text, OUT o_operator text, OUT o_tried int, OUT o_refused int,
                               OUT o_rows bigint, OUT o_used int, OUT o_differ int)
RETURNS SETOF record LANGUAGE plpgsql AS $$
DECLARE
    probe record;
    value text;
    query text;
    plan json;
    without bigint;
    through bigint;
BEGIN
    FOR probe IN
        WITH column_of AS (
            SELECT i.indexrelid, c.relname, i.indrelid::regclass AS tab, am.amname, att.attname, att.atttypid,
                   oc.opcfamily, oc.opcintype, coalesce(pg_get_expr(i.indpred, i.indrelid), 'true') AS predicate
            FROM pg_index i
            JOIN pg_class c ON c.oid = i.indexrelid
            JOIN pg_class t ON t.oid = i.indrelid
            JOIN pg_am am ON am.oid = c.relam
            JOIN pg_attribute att ON att.attrelid = i.indrelid AND att.attnum = i.indkey[0]
            JOIN pg_opclass oc ON oc.oid = i.indclass[0]
            WHERE c.relkind = 'i' AND c.relpersistence = 'p' AND t.relkind IN ('r', 'm') AND am.amname <> 'btree'
              AND i.indisvalid
        )
        SELECT column_of.*, o.oprname::text AS operator, format('OPERATOR(%I.%s)', n.nspname, o.oprname) AS spelled,
               p.amoprighttype AS right_type
        FROM column_of
        JOIN pg_amop p ON p.amopfamily = opcfamily AND p.amoplefttype = opcintype AND p.amoppurpose = 's'
        JOIN pg_operator o ON o.oid = p.amopopr
        JOIN pg_namespace n ON n.oid = o.oprnamespace
        WHERE p.amoprighttype = opcintype OR (opcintype, p.amoprighttype) = ('tsvector'::regtype, 'tsquery'::regtype)
        UNION ALL
        SELECT column_of.*, 'IS NULL', NULL, NULL FROM column_of
        WHERE pg_index_column_has_property(indexrelid, 1, 'search_nulls')
        ORDER BY 1, 9
    LOOP
        o_index := probe.indexrelid::regclass;
        o_method := probe.amname;
        o_operator := probe.operator;
        o_tried := 0; o_refused := 0; o_rows := 0; o_used := 0; o_differ := 0;
        PERFORM pg_temp.set_scans(false);
        FOR value IN EXECUTE CASE
            WHEN probe.spelled IS NULL THEN 'VALUES (''IS NULL''), (''IS NOT NULL'')'
            WHEN probe.right_type <> probe.opcintype THEN format(
                'SELECT DISTINCT quote_literal(l) FROM ONLY %s, unnest(tsvector_to_array(%I)) l WHERE %s ORDER BY 1 LIMIT 5',
                probe.tab, probe.attname, probe.predicate)
            ELSE format(
                'SELECT v FROM (SELECT DISTINCT %I::text AS v FROM ONLY %s WHERE %s) d
                 WHERE v IS NOT NULL ORDER BY hashtext(v), v LIMIT %s',
                probe.attname, probe.tab, probe.predicate, CASE probe.amname WHEN 'hash' THEN 50 ELSE 5 END)
            END
        LOOP
            query := format('SELECT count(*) FROM ONLY %s WHERE %I %s AND %s', probe.tab, probe.attname,
                CASE WHEN probe.spelled IS NULL THEN value
                     ELSE format('%s %L::%s', probe.spelled, value,
                        CASE WHEN probe.right_type <> probe.opcintype THEN 'tsquery' ELSE format_type(probe.atttypid, NULL) END)
                END, probe.predicate);
            BEGIN
                o_tried := o_tried + 1;
                PERFORM pg_temp.set_scans(false);
                EXECUTE query INTO without;
                PERFORM pg_temp.set_scans(true);
                EXECUTE query INTO through;
                EXECUTE 'EXPLAIN (FORMAT JSON, COSTS off) ' || query INTO plan;
                o_rows := o_rows + without;
                o_used := o_used + (plan::text LIKE '%"Index Name": ' || to_json(probe.relname) || '%')::int;
                o_differ := o_differ + (without <> through)::int;
            EXCEPTION WHEN data_exception THEN
                -- The text of one value need not be a pattern.
                o_refused := o_refused + 1;
            END;
        END LOOP;
        RETURN NEXT;
    END LOOP;
END
$$;

SELECT * FROM pg_temp.probes();
