//! Every `biha.*` setting of postgresql.conf. The common settings of the cluster are not here but in the
//! replicated configuration.

use std::ffi::CString;

use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting, pg_sys};

use crate::board;

/// `biha.id`: this node's number; 0 is "not configured".
pub static ID: GucSetting<i32> = GucSetting::<i32>::new(0);
/// `biha.host`: where peers reach the control channel.
pub static HOST: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(None);
/// `biha.port`: port of the control channel; 0 is the server's port + 1.
pub static PORT: GucSetting<i32> = GucSetting::<i32>::new(0);
/// `biha.autorewind`: rewind by itself when the WAL has parted from the leader's.
pub static AUTOREWIND: GucSetting<bool> = GucSetting::<bool>::new(true);
/// `biha.autoreclone`: copy the leader by itself where a rewind cannot work.
pub static AUTORECLONE: GucSetting<bool> = GucSetting::<bool>::new(false);
/// `biha.keep_lost_wal`: MB of WAL that rewinds may keep aside; 0 is off.
pub static KEEP_LOST_WAL: GucSetting<i32> = GucSetting::<i32>::new(1024);
/// `biha.use_ssl`: TLS on the control channel.
pub static USE_SSL: GucSetting<bool> = GucSetting::<bool>::new(true);
/// `biha.ssl_certificate`: certificate of this node.
pub static SSL_CERTIFICATE: GucSetting<Option<CString>> =
    GucSetting::<Option<CString>>::new(Some(c"pg_biha/node.crt"));
/// `biha.ssl_private_key`: private key of this node.
pub static SSL_PRIVATE_KEY: GucSetting<Option<CString>> =
    GucSetting::<Option<CString>>::new(Some(c"pg_biha/node.key"));
/// `biha.ssl_ca`: certificate authority of the cluster.
pub static SSL_CA: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c"pg_biha/ca.crt"));
/// `biha.trust_refused`: count a refused connection after end-of-file as the leader's death.
pub static TRUST_REFUSED: GucSetting<bool> = GucSetting::<bool>::new(false);
/// `biha.watchdog_timeout`: after so many seconds without a write that came through, a leader's disk is sick; 0 is
/// off.
pub static WATCHDOG_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(5);
/// `biha.receiver_epoch`: number of the last change of the receiver's settings; the startup process
/// reports in shared memory that it has read it.
static RECEIVER_EPOCH: GucSetting<i32> = GucSetting::<i32>::new(0);

/// Defines the settings. In `_PG_init` only.
pub fn register() {
    use GucContext::{Postmaster, Sighup};
    let none = GucFlags::default();
    let int = |name, short, long, var, min, max, ctx, flags| {
        GucRegistry::define_int_guc(name, short, long, var, min, max, ctx, flags);
    };
    int(
        c"biha.id",
        c"Number of this node in the biha cluster.",
        c"Unique in the cluster; 0 means that biha is not configured here.",
        &ID,
        0,
        i32::MAX,
        Postmaster,
        none,
    );
    int(
        c"biha.port",
        c"Port of biha's control channel.",
        c"0 means the server's port + 1.",
        &PORT,
        0,
        65535,
        Postmaster,
        none,
    );
    GucRegistry::define_string_guc(
        c"biha.host",
        c"Host name or address where the other nodes reach this one.",
        c"",
        &HOST,
        Postmaster,
        none,
    );
    let boolean = |name, short, var, ctx| GucRegistry::define_bool_guc(name, short, c"", var, ctx, none);
    boolean(
        c"biha.autorewind",
        c"Rewind this node by itself when its WAL has diverged.",
        &AUTOREWIND,
        Sighup,
    );
    boolean(
        c"biha.autoreclone",
        c"Copy the leader by itself where this node cannot be rewound and cannot follow.",
        &AUTORECLONE,
        Sighup,
    );
    boolean(c"biha.use_ssl", c"Use TLS on biha's control channel.", &USE_SSL, Postmaster);
    boolean(
        c"biha.trust_refused",
        c"Count a refused connection as the leader's death after its connection has ended.",
        &TRUST_REFUSED,
        Sighup,
    );
    int(
        c"biha.watchdog_timeout",
        c"A leader whose disk takes no writes for so long hands over.",
        c"0 turns it off.",
        &WATCHDOG_TIMEOUT,
        0,
        3600,
        Sighup,
        GucFlags::UNIT_S,
    );
    int(
        c"biha.keep_lost_wal",
        c"A rewind first keeps aside the WAL that only this node has, so much in all.",
        c"0 turns it off.",
        &KEEP_LOST_WAL,
        0,
        1 << 20,
        Sighup,
        GucFlags::UNIT_MB,
    );
    let path = |name, short, var| {
        GucRegistry::define_string_guc(
            name,
            short,
            c"Relative to the data directory.",
            var,
            Postmaster,
            none,
        );
    };
    path(c"biha.ssl_certificate", c"Certificate of this node for the control channel.", &SSL_CERTIFICATE);
    path(c"biha.ssl_private_key", c"Private key of this node for the control channel.", &SSL_PRIVATE_KEY);
    path(c"biha.ssl_ca", c"Certificate authority of the cluster's control channel.", &SSL_CA);
    // SAFETY: the assign hook only stores to an atomic; see `board::receiver_epoch_assigned`.
    unsafe {
        GucRegistry::define_int_guc_with_hooks(
            c"biha.receiver_epoch",
            c"Internal: number of the last change of the WAL receiver's settings.",
            c"",
            &RECEIVER_EPOCH,
            0,
            i32::MAX,
            Sighup,
            GucFlags::NO_SHOW_ALL | GucFlags::DISALLOW_IN_AUTO_FILE,
            None,
            Some(board::receiver_epoch_assigned),
            None,
        );
    }
    // SAFETY: called in _PG_init, after all settings of the prefix are defined.
    unsafe { pg_sys::MarkGUCPrefixReserved(c"biha".as_ptr()) };
}

/// Is biha configured on this node? If not, PostgreSQL must behave as if biha were absent.
pub fn configured() -> bool {
    ID.get() > 0
}

/// Port of the control channel.
pub fn control_port() -> u16 {
    let port = match PORT.get() {
        // SAFETY: PostPortNumber is a plain int, set before libraries are loaded.
        0 => (unsafe { pg_sys::PostPortNumber }) + 1,
        port => port,
    };
    u16::try_from(port).unwrap_or(0)
}
