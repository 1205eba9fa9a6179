-- Who may do what. Roles belong to the whole server and may exist already; the extension leaves them in
-- place when it is dropped. The login role biha_replication_user is made by bihactl, with its password.

DO $$
DECLARE
    role_name text;
BEGIN
    FOREACH role_name IN ARRAY ARRAY['BIHA_CLUSTER_MANAGEMENT_ROLE', 'BIHA_REPLICATION_ROLE', 'biha_monitoring']
    LOOP
        IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = role_name) THEN
            EXECUTE pg_catalog.format('CREATE ROLE %I NOLOGIN', role_name);
        END IF;
    END LOOP;
END
$$;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA biha FROM PUBLIC;
GRANT USAGE ON SCHEMA biha TO "BIHA_CLUSTER_MANAGEMENT_ROLE", "BIHA_REPLICATION_ROLE", biha_monitoring;

-- The managers: everything.
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA biha TO "BIHA_CLUSTER_MANAGEMENT_ROLE";
GRANT SELECT ON ALL TABLES IN SCHEMA biha TO "BIHA_CLUSTER_MANAGEMENT_ROLE";

-- The watchers: what only reads, and the replication statistics of the server.
GRANT SELECT ON biha.status_v, biha.nodes_v TO biha_monitoring;
GRANT pg_monitor TO biha_monitoring;
DO $$
DECLARE
    reading regprocedure;
BEGIN
    FOR reading IN
        SELECT p.oid
        FROM pg_catalog.pg_proc p
        WHERE p.pronamespace = 'biha'::pg_catalog.regnamespace
          AND p.proname IN ('status', 'nodes', 'config', 'history', 'error_details', 'lost_transactions')
    LOOP
        EXECUTE pg_catalog.format('GRANT EXECUTE ON FUNCTION %s TO biha_monitoring', reading);
    END LOOP;
END
$$;

-- pg_rewind: just the functions that its manual page names, in the database it connects to.
GRANT EXECUTE ON FUNCTION pg_catalog.pg_ls_dir(text, boolean, boolean) TO "BIHA_REPLICATION_ROLE";
GRANT EXECUTE ON FUNCTION pg_catalog.pg_stat_file(text, boolean) TO "BIHA_REPLICATION_ROLE";
GRANT EXECUTE ON FUNCTION pg_catalog.pg_read_binary_file(text) TO "BIHA_REPLICATION_ROLE";
GRANT EXECUTE ON FUNCTION pg_catalog.pg_read_binary_file(text, bigint, bigint, boolean)
    TO "BIHA_REPLICATION_ROLE";
