//! `status`: what is held now.

use crate::{
    client::Connection,
    failure::Failure,
    print::{self, Output},
};

#[derive(Debug, clap::Args)]
pub struct Command {
    /// One Database; all of the namespace when absent.
    name: Option<String>,
}

impl Command {
    pub async fn run(self, connection: Connection, output: Output) -> Result<u8, Failure> {
        let api = connection.connect().await?;
        let live = api.live(self.name.as_deref()).await?;
        if output == Output::Json {
            return print::json(&live).map(|()| 0);
        }
        let rows: Vec<Vec<String>> = live
            .iter()
            .map(|database| {
                let status = &database.status;
                let left = status.remaining_milliseconds.map(|left| format!("{:.1} s", seconds(left)));
                let users: Vec<&str> = status.claims.iter().map(|claim| claim.user.as_str()).collect();
                vec![
                    database.metadata.name.clone().unwrap_or_default(),
                    status.state.clone(),
                    status.level.map(|level| level.to_string()).unwrap_or_default(),
                    left.unwrap_or_default(),
                    status.stalled_sessions.map(|stalled| stalled.to_string()).unwrap_or_default(),
                    status.position.as_ref().map(api::Position::summary).unwrap_or_default(),
                    users.join(", "),
                ]
            })
            .collect();
        print!("{}", print::table(&["NAME", "STATE", "LEVEL", "LEFT", "STALLED", "POSITION", "CLAIMED BY"], &rows));
        Ok(0)
    }
}

/// Milliseconds as seconds, for people.
#[expect(clippy::cast_precision_loss, reason = "a freeze lasts hours at most")]
pub fn seconds(milliseconds: u64) -> f64 {
    milliseconds as f64 / 1000.0
}
