//! What a case is: what is asked, each way, and what is wanted of the answer, in words and as a check.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use futures::future::BoxFuture;
use serde_json::Value;

use super::stage::Stage;
use crate::{
    doors::{Ask, Way, fill},
    wire::Answer,
};

/// One line of the table.
pub(super) struct Case {
    /// Its number in the list of what an aggregated API server must do; 0: it is not in it.
    pub(super) number: u8,
    pub(super) what: &'static str,
    through: Option<Run>,
    direct: Option<Run>,
}

#[derive(Clone)]
enum Run {
    /// One request.
    Asks(Ask, Want),
    /// Several, told in words.
    Does(&'static str, Doing),
    /// Not this way, and why.
    Not(&'static str),
}

pub(super) type Doing = for<'a> fn(&'a Stage, Way) -> BoxFuture<'a, Result<()>>;

/// What an answer must be like.
#[derive(Clone)]
pub(super) struct Want {
    words: Vec<String>,
    checks: Vec<Check>,
}

/// The second argument is the namespace.
type Check = Arc<dyn Fn(&Answer, &str) -> Result<()> + Send + Sync>;

/// A probe that takes longer is taken for a server that is down by some of those who probe.
const FAST: Duration = Duration::from_secs(1);
/// Of one case, however many requests it makes.
const LIMIT: Duration = Duration::from_secs(180);

pub(super) fn case(number: u8, what: &'static str) -> Case {
    Case { number, what, through: None, direct: None }
}

impl Case {
    pub(super) fn both(self, ask: Ask, want: Want) -> Self {
        self.through(ask.clone(), want.clone()).direct(ask, want)
    }

    pub(super) fn through(self, ask: Ask, want: Want) -> Self {
        Self { through: Some(Run::Asks(ask, want)), ..self }
    }

    pub(super) fn direct(self, ask: Ask, want: Want) -> Self {
        Self { direct: Some(Run::Asks(ask, want)), ..self }
    }

    pub(super) fn does(self, words: &'static str, doing: Doing) -> Self {
        self.does_through(words, doing).does_directly(words, doing)
    }

    pub(super) fn does_through(self, words: &'static str, doing: Doing) -> Self {
        Self { through: Some(Run::Does(words, doing)), ..self }
    }

    pub(super) fn does_directly(self, words: &'static str, doing: Doing) -> Self {
        Self { direct: Some(Run::Does(words, doing)), ..self }
    }

    pub(super) fn not_through(self, why: &'static str) -> Self {
        Self { through: Some(Run::Not(why)), ..self }
    }

    pub(super) fn not_directly(self, why: &'static str) -> Self {
        Self { direct: Some(Run::Not(why)), ..self }
    }

    /// Whether it is said of each way what happens.
    pub(super) fn is_whole(&self) -> bool {
        self.through.is_some() && self.direct.is_some()
    }

    /// What is expected of a way, for people.
    pub(super) fn words(&self, way: Way) -> String {
        match self.of(way) {
            None => String::new(),
            Some(Run::Asks(_, want)) => want.words.join("; "),
            Some(Run::Does(words, _)) => (*words).to_owned(),
            Some(Run::Not(why)) => format!("not run: {why}"),
        }
    }

    pub(super) fn is_run(&self, way: Way) -> bool {
        !matches!(self.of(way), None | Some(Run::Not(_)))
    }

    pub(super) async fn run(&self, stage: &Stage, way: Way) -> Result<()> {
        let running = async {
            match self.of(way) {
                None | Some(Run::Not(_)) => Ok(()),
                Some(Run::Does(_, doing)) => doing(stage, way).await,
                Some(Run::Asks(ask, want)) => want.of(&stage.send(way, ask).await?, stage.namespace()),
            }
        };
        tokio::time::timeout(LIMIT, running).await.context("it takes too long")?
    }

    fn of(&self, way: Way) -> Option<&Run> {
        match way {
            Way::Through => self.through.as_ref(),
            Way::Direct => self.direct.as_ref(),
        }
    }
}

impl Want {
    pub(super) fn code(code: u16) -> Self {
        let none = Self { words: Vec::new(), checks: Vec::new() };
        none.that(&code.to_string(), move |answer| {
            ensure!(answer.code == code, "the code is not {code}");
            Ok(())
        })
    }

    /// A refusal, as a Status with this reason.
    pub(super) fn refusal(code: u16, reason: &'static str) -> Self {
        Self::code(code).and(reason, move |answer, _| {
            let status = answer.json();
            ensure!(status["kind"] == "Status" && status["reason"] == reason, "not a Status of reason {reason}");
            ensure!(status["code"] == u64::from(code), "the Status says {}", status["code"]);
            Ok(())
        })
    }

    /// The value at a JSON pointer.
    pub(super) fn has(self, pointer: &'static str, value: impl Into<Value>) -> Self {
        let value = value.into();
        let words = format!("`{pointer}` is `{value}`");
        self.and(&words, move |answer, _| {
            let found = answer.json().pointer(pointer).cloned().unwrap_or_default();
            ensure!(found == value, "{pointer} is {found}");
            Ok(())
        })
    }

    /// Its Status says exactly this.
    pub(super) fn says(self, message: &'static str) -> Self {
        self.and(&format!("“{}”", message.replace("{ns}", "NAMESPACE")), move |answer, namespace| {
            let (said, wanted) = (answer.json()["message"].take(), fill(message, namespace));
            ensure!(said == wanted.as_str(), "it says {said}, not {wanted:?}");
            Ok(())
        })
    }

    /// Its Status says this among other things.
    pub(super) fn mentions(self, text: &'static str) -> Self {
        self.and(&format!("names “{text}”"), move |answer, _| {
            let said = answer.json()["message"].take();
            ensure!(said.as_str().is_some_and(|said| said.contains(text)), "{said} does not name {text:?}");
            Ok(())
        })
    }

    pub(super) fn header(self, name: &'static str, value: &'static str) -> Self {
        self.and(&format!("`{name}: {value}`"), move |answer, _| {
            ensure!(answer.has(name, value), "{name} is {:?}", answer.header(name));
            Ok(())
        })
    }

    pub(super) fn fast(self) -> Self {
        self.and("within 1 s", |answer, _| {
            ensure!(answer.took < FAST, "it took {} ms", answer.took.as_millis());
            Ok(())
        })
    }

    /// For bodies that take some work to refuse, in a debug build on a busy machine.
    pub(super) fn promptly(self) -> Self {
        self.and("within 20 s", |answer, _| {
            ensure!(answer.took < Duration::from_secs(20), "it took {} ms", answer.took.as_millis());
            Ok(())
        })
    }

    pub(super) fn that(self, words: &str, check: impl Fn(&Answer) -> Result<()> + Send + Sync + 'static) -> Self {
        self.and(words, move |answer, _| check(answer))
    }

    fn and(mut self, words: &str, check: impl Fn(&Answer, &str) -> Result<()> + Send + Sync + 'static) -> Self {
        self.words.push(words.to_owned());
        self.checks.push(Arc::new(check));
        self
    }

    /// Judges an answer.
    pub(super) fn of(&self, answer: &Answer, namespace: &str) -> Result<()> {
        for check in &self.checks {
            if let Err(error) = check(answer, namespace) {
                bail!("{error}: {}", answer.brief());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue, header};
    use serde_json::json;

    use super::*;

    fn answer(code: u16, body: &Value) -> Answer {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Answer { code, headers, body: body.to_string().into(), took: Duration::from_millis(5) }
    }

    /// The control of the whole table: each kind of want, with an answer that is right and one that is nearly.
    #[test]
    fn an_answer_that_is_nearly_right_is_noticed() {
        let status = |code: u16, reason: &str, message: &str| json!({"kind": "Status", "code": code, "reason": reason, "message": message});
        let slow = |mut answer: Answer, seconds| {
            answer.took = Duration::from_secs(seconds);
            answer
        };
        let forbidden = || answer(403, &status(403, "Forbidden", "no, not in shop"));
        let cases = [
            (Want::code(200), answer(200, &json!({})), answer(201, &json!({}))),
            (Want::refusal(403, "Forbidden"), forbidden(), answer(403, &status(403, "Unauthorized", ""))),
            (Want::refusal(403, "Forbidden"), forbidden(), answer(403, &status(401, "Forbidden", ""))),
            (Want::refusal(403, "Forbidden"), forbidden(), answer(403, &Value::from("service unavailable"))),
            (Want::code(403).says("no, not in {ns}"), forbidden(), answer(403, &status(403, "Forbidden", "no"))),
            (Want::code(403).mentions("not in"), forbidden(), answer(403, &status(403, "Forbidden", "no"))),
            (Want::code(200).has("/a/0", 1), answer(200, &json!({"a": [1]})), answer(200, &json!({"a": ["1"]}))),
            (Want::code(200).has("/a", Value::Null), answer(200, &json!({})), answer(200, &json!({"a": 0}))),
            (Want::code(200).fast(), answer(200, &json!({})), slow(answer(200, &json!({})), 1)),
            (Want::code(200).promptly(), answer(200, &json!({})), slow(answer(200, &json!({})), 20)),
        ];
        for (at, (want, right, wrong)) in cases.into_iter().enumerate() {
            assert!(want.of(&right, "shop").is_ok(), "{at}: {:?}", want.of(&right, "shop"));
            assert!(want.of(&wrong, "shop").is_err(), "{at}");
        }
        let typed = |name, value| Want::code(200).header(name, value).of(&answer(200, &json!({})), "shop");
        assert!(typed("content-type", "application/json").is_ok() && typed("content-type", "text/plain").is_err());
    }
}
