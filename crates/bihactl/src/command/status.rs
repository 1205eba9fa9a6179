//! `bihactl status`.

use std::io::IsTerminal;
use std::time::Duration;

use anyhow::{Result, bail};

use super::connect;
use crate::cli::Status;
use crate::interrupt;
use crate::outcome::refused;
use crate::render;
use crate::sql::{ClusterView, Login, look};
use crate::ui;

/// Terminal: home, and clear to the end.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// Shows the state once, or until interrupted.
pub fn run(args: &Status) -> Result<()> {
    let login = connect::login(&args.connect)?;
    let Some(seconds) = args.watch else {
        let view = look(&mut login.connect()?, &login)?;
        ui::result(&text(&view, args.json));
        return if view.writable() {
            Ok(())
        } else {
            Err(refused("the cluster has no leader that takes writes"))
        };
    };
    if !(0.05..=86_400.0).contains(&seconds) {
        bail!("the interval of --watch must be between 0.05 and 86400 seconds");
    }
    watch(&login, args.json, Duration::from_secs_f64(seconds))
}

fn text(view: &ClusterView, json: bool) -> String {
    if json { render::json(view).to_string() } else { render::table(view) }
}

/// A node that goes away is asked again, or the next in the list: that is when one wants to watch.
fn watch(login: &Login, json: bool, interval: Duration) -> Result<()> {
    let clear = if std::io::stdout().is_terminal() && !json { CLEAR } else { "" };
    let mut client = None;
    while !interrupt::requested() {
        if client.is_none() {
            client = login.connect().map_err(|e| ui::warn(&format!("{e:#}"), "")).ok();
        }
        if let Some(mut connected) = client.take() {
            match look(&mut connected, login) {
                Ok(view) => {
                    ui::result(&format!("{clear}{}", text(&view, json)));
                    client = Some(connected);
                }
                Err(e) => ui::warn(&format!("{e:#}"), ""),
            }
        }
        if interrupt::pause(interval).is_err() {
            break;
        }
    }
    Ok(())
}
