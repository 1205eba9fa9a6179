-- A stand-in for the extension, without a controller: functions of the same names over a table.

CREATE TABLE biha.member (
    id int PRIMARY KEY, host text, port int, biha_port int, mode text, joining bool
);

CREATE FUNCTION biha.config(
    OUT id int, OUT host text, OUT port int, OUT biha_port int, OUT mode text, OUT nquorum int, OUT minnodes int,
    OUT joining bool, OUT can_be_leader bool, OUT can_vote bool, OUT lossless bool, OUT lossless_why text
) RETURNS SETOF record LANGUAGE sql AS $$
    SELECT m.*, true, true, false, 'asynchronous' FROM (
        SELECT current_setting('biha.id')::int, current_setting('biha.host'), current_setting('port')::int,
               current_setting('biha.port')::int, 'regular', 1, 1, false
        WHERE NOT EXISTS (SELECT FROM biha.member WHERE id = current_setting('biha.id')::int)
        UNION ALL
        SELECT id, host, port, biha_port, mode, 1, 1, joining FROM biha.member
    ) m
$$;

CREATE FUNCTION biha.status(
    OUT id int, OUT leader_id int, OUT term int, OUT online bool, OUT state text, OUT last_known_state text,
    OUT since_last_hb interval
) RETURNS SETOF record LANGUAGE sql AS $$
    SELECT c.id, 1, 2, c.id = current_setting('biha.id')::int,
           CASE WHEN pg_is_in_recovery() THEN 'FOLLOWER' ELSE 'LEADER_RW' END, NULL::text, NULL::interval
    FROM biha.config() c
$$;

CREATE FUNCTION biha.nodes(OUT id int, OUT host text, OUT port int, OUT state text)
RETURNS SETOF record LANGUAGE sql AS 'SELECT id, host, port, ''ACTIVE'' FROM biha.config()';

CREATE FUNCTION biha.add_node(id int, host text, port int, biha_port int, mode text DEFAULT 'regular')
RETURNS bool LANGUAGE sql SECURITY DEFINER AS
'INSERT INTO biha.member VALUES (id, host, port, biha_port, mode, false); SELECT true';

CREATE FUNCTION biha.remove_node(node int)
RETURNS bool LANGUAGE sql SECURITY DEFINER AS 'DELETE FROM biha.member WHERE id = node; SELECT true';

CREATE FUNCTION biha.set_leader(id int) RETURNS bool LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'node % cannot lead', id USING HINT = 'It is a stand-in.', ERRCODE = '55000';
END
$$;
