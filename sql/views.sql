-- Views over the reading functions, with the names and columns that users of BiHA know.

CREATE VIEW biha.status_v AS
SELECT id, leader_id, term, online, state, last_known_state, since_last_hb
FROM biha.status();

COMMENT ON VIEW biha.status_v IS 'every member of the cluster as this node sees it';
COMMENT ON COLUMN biha.status_v.leader_id IS 'the leader this node knows';
COMMENT ON COLUMN biha.status_v.term IS 'the newest term this node knows';
COMMENT ON COLUMN biha.status_v.online IS 'heard from within heartbeat_max_lost periods';
COMMENT ON COLUMN biha.status_v.state IS 'UNKNOWN if the member is not online';
COMMENT ON COLUMN biha.status_v.last_known_state IS 'state before the member fell silent';
COMMENT ON COLUMN biha.status_v.since_last_hb IS 'time since the member was last heard from; null for this node';

CREATE VIEW biha.nodes_v AS
SELECT id, host, port, state
FROM biha.nodes();

COMMENT ON VIEW biha.nodes_v IS 'control connections of this node to the other members';
COMMENT ON COLUMN biha.nodes_v.state IS
    'INIT, CONNECTING, SSLCONNECT, SSLACCEPT, ACTIVE or IDLE; null for this node';
