//! Why a verb did not do what it was asked, for a client: what stood in the way, who, until when, and what to do.

use api::{Check, Claim, conditions::reasons};
use freeze::Refused;

use super::call::Call;
use crate::{
    error::{About, ApiError},
    resources::live,
    targets::Unresolved,
};

/// Why a claim does not hold, for a client: conflicts name claims and deadline.
pub(super) fn refusal(call: &Call<'_>, refused: Refused) -> ApiError {
    let about = live::DATABASES.about(call.name);
    match refused {
        Refused::Conflict { freeze, status, why } => {
            let claims: Vec<&Claim> = status.claims.iter().filter(|claim| claim.ended_at.is_none()).collect();
            let names = claims.iter().map(|claim| format!("{} (uid {})", claim.user, claim.uid)).collect::<Vec<_>>();
            let until =
                status.expires_at.as_ref().map_or_else(|| "not held yet".to_owned(), |at| format!("until {}", at.0));
            let message = format!("Freeze {} covers it for {}, {until}: {why}", freeze.name, names.join(", "));
            let error = ApiError::conflict(about, message);
            claims.iter().fold(error, |error, claim| {
                error.because(
                    "Claimed",
                    "",
                    format!("{} holds claim {} until {}", claim.user, claim.uid, claim.until.0),
                )
            })
        }
        Refused::NotHeld { causes, .. } if is_elsewhere(&causes) => {
            ApiError::in_motion("another replica has taken the Database meanwhile; try again in a moment")
        }
        Refused::NotHeld { freeze, causes, .. } => {
            let said: Vec<String> = causes
                .iter()
                .map(|check| {
                    format!("{}: {}; {}", check.database, check.message, check.fix.as_deref().unwrap_or_default())
                })
                .collect();
            let error =
                ApiError::conflict(about, format!("it does not hold (Freeze {}): {}", freeze.name, said.join("; ")));
            causes.iter().fold(error, |error, check| {
                error.because(check.reason.as_deref().unwrap_or_default(), &check.database, check.message.clone())
            })
        }
        Refused::Finished { freeze } => ApiError::gone(format!(
            "the claim with this uid belongs to Freeze {}, which is finished; use another uid",
            freeze.name
        )),
        Refused::Withdrawn { freeze } => {
            ApiError::conflict(about, format!("the claim was ended while it waited (Freeze {})", freeze.name))
        }
        Refused::Undoing { freeze } => ApiError::conflict(
            about,
            format!("what Freeze {} left is still being undone; see its status, and try again", freeze.name),
        ),
        Refused::Stopping { .. } => ApiError::in_motion("the server is going down and begins no freeze; try again"),
    }
}

fn is_elsewhere(causes: &[Check]) -> bool {
    let elsewhere = |cause: &Check| cause.reason.as_deref() == Some(reasons::MEMBER_ELSEWHERE);
    !causes.is_empty() && causes.iter().all(elsewhere)
}

/// What stood in the way before any server was asked.
pub(super) fn unresolved(error: &Unresolved) -> ApiError {
    let check = error.check();
    let name = match error {
        Unresolved::Paused { database }
        | Unresolved::Credentials { database, .. }
        | Unresolved::Endpoint { database }
        | Unresolved::Agent { database }
        | Unresolved::Undecided { database, .. }
        | Unresolved::Member { database, .. } => database.as_str(),
        Unresolved::Engine { .. } => "",
    };
    let message = format!("{}; {}", check.message, check.fix.as_deref().unwrap_or_default());
    let about = About { group: api::LIVE_GROUP, plural: "databases", name };
    ApiError::conflict(about, message).because(check.reason.as_deref().unwrap_or_default(), "", check.message)
}
