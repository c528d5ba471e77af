//! Which of a Pod's containers the database runs in, and of which engine it is.

use serde_json::Value;

use super::{
    Asked, PREFIX,
    engine::{Kind, Look, of_image, of_ports},
    pod::{Container, Pod},
    settings::Settings,
};
use crate::Engine;

/// The database of a Pod.
#[derive(Clone, Copy, Debug)]
pub(super) struct Database<'a> {
    pub(super) container: Container<'a>,
    pub(super) engine: Engine,
    /// How that is known, if nobody has said it.
    pub(super) guessed_by: Option<&'static str>,
}

/// Why there is none.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NoDatabase {
    /// Nothing in the Pod looks like one.
    Unlike,
    /// There may be one; what to do.
    Unclear(String),
}

const BY_IMAGE: &str = "image";
const BY_PORT: &str = "port";
const SERVED: &str = "PostgreSQL and MariaDB are";

/// Nothing is guessed of what is said; and a port alone tells nothing of a Pod that did not ask itself: a proxy has it, too.
pub(super) fn find<'a>(pod: Pod<'a>, settings: &Settings, asked: Asked) -> Result<Database<'a>, NoDatabase> {
    let candidates: Vec<Container<'a>> = match &settings.container {
        Some(name) => vec![named(pod, name)?],
        None => pod.running().filter(|container| !container.is_agent()).collect(),
    };
    match settings.engine {
        Some(engine) => of_engine(pod, engine, &candidates),
        None => guessed(&candidates, asked == Asked::Label || settings.container.is_some()),
    }
}

/// The image that a Pod's database runs, of an engine that is known: with the programs of its version in it.
pub fn image_of(pod: &Value, engine: Engine) -> Option<String> {
    let pod = Pod(pod);
    let candidates: Vec<Container<'_>> = match pod.annotation(&format!("{PREFIX}container")) {
        Some(name) => vec![named(pod, name).ok()?],
        None => pod.running().filter(|container| !container.is_agent()).collect(),
    };
    let found = of_engine(pod, engine, &candidates).ok()?;
    Some(found.container.image().to_owned()).filter(|image| !image.is_empty())
}

fn named<'a>(pod: Pod<'a>, name: &str) -> Result<Container<'a>, NoDatabase> {
    let mut running = pod.running();
    running.find(|container| container.name() == name).ok_or_else(|| {
        let all = names(&pod.running().collect::<Vec<_>>());
        NoDatabase::Unclear(format!("stillpoint.dev/container is {name:?}; the Pod has {all}"))
    })
}

/// The container that an engine runs in which was said.
fn of_engine<'a>(pod: Pod<'a>, engine: Engine, candidates: &[Container<'a>]) -> Result<Database<'a>, NoDatabase> {
    let found = |container: Container<'a>| Ok(Database { container, engine, guessed_by: None });
    if let [one] = candidates {
        return found(*one);
    }
    let is_of = |container: &Container<'_>| of_image(container.image()) == Look::Server(Kind::Served(engine));
    let is_other = |container: &Container<'_>| !is_of(container) && of_image(container.image()) != Look::Unknown;
    let has_port = |container: &Container<'_>| container.ports().any(|(port, _)| port == engine.default_port());
    let of: Vec<_> = candidates.iter().copied().filter(is_of).collect();
    let listening: Vec<_> = candidates.iter().copied().filter(|one| !is_other(one) && has_port(one)).collect();
    let main: Vec<_> = pod.containers().filter(|one| !is_other(one)).collect();
    // The best evidence that there is decides, also when it is not clear.
    match [of, listening, main].into_iter().find(|found| !found.is_empty()).as_deref() {
        Some([one]) => found(*one),
        Some(several) => Err(several_of(several)),
        None => Err(several_of(candidates)),
    }
}

fn guessed<'a>(candidates: &[Container<'a>], by_port: bool) -> Result<Database<'a>, NoDatabase> {
    let look = |container: &Container<'a>| match of_image(container.image()) {
        Look::Server(Kind::Served(engine)) => Some((*container, engine)),
        _ => None,
    };
    let servers: Vec<_> = candidates.iter().filter_map(look).collect();
    if let Some(found) = only(&servers, BY_IMAGE) {
        return found;
    }
    if let Some(mysql) = candidates.iter().find(|one| of_image(one.image()) == Look::Server(Kind::MySql)) {
        let name = mysql.name();
        return Err(NoDatabase::Unclear(format!("the image of {name} is MySQL's, which is not served yet; {SERVED}")));
    }
    if !by_port {
        return Err(NoDatabase::Unlike);
    }
    let listening: Vec<_> = candidates.iter().filter_map(|one| Some((*one, of_ports(*one)?))).collect();
    only(&listening, BY_PORT).unwrap_or_else(|| {
        let engines = "PostgreSQL or MariaDB";
        Err(NoDatabase::Unclear(format!(
            "no image or port says which engine it is; annotate stillpoint.dev/engine: {engines}"
        )))
    })
}

/// None if there is none.
fn only<'a>(found: &[(Container<'a>, Engine)], by: &'static str) -> Option<Result<Database<'a>, NoDatabase>> {
    match found {
        [] => None,
        [(container, engine)] => Some(Ok(Database { container: *container, engine: *engine, guessed_by: Some(by) })),
        several => Some(Err(several_of(&several.iter().map(|(container, _)| *container).collect::<Vec<_>>()))),
    }
}

fn several_of(containers: &[Container<'_>]) -> NoDatabase {
    let all = names(containers);
    NoDatabase::Unclear(format!(
        "the database may be in {all}; annotate stillpoint.dev/container with the one it is in"
    ))
}

fn names(containers: &[Container<'_>]) -> String {
    const MOST: usize = 8;
    let names: Vec<&str> = containers.iter().take(MOST).map(|container| container.name()).collect();
    let more = if containers.len() > MOST { ", …" } else { "" };
    format!("{}{more}", names.join(", "))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// Containers as `name=image:port` in words; after a `|` those that are sidecars.
    fn pod(words: &str) -> Value {
        let (main, side) = words.split_once('|').unwrap_or((words, ""));
        let containers = |words: &str, policy: Option<&str>| -> Value {
            let container = |word: &str| {
                let (name, rest) = word.split_once('=').unwrap();
                let (image, port) = rest.split_once('@').unwrap_or((rest, "0"));
                let port: u16 = port.parse().unwrap();
                json!({"name": name, "image": image, "ports": [{"containerPort": port}], "restartPolicy": policy})
            };
            words.split_whitespace().map(container).collect()
        };
        json!({"spec": {"containers": containers(main, None), "initContainers": containers(side, Some("Always"))}})
    }

    fn found(words: &str, engine: Option<Engine>, container: Option<&str>, asked: Asked) -> Result<String, NoDatabase> {
        let settings = Settings { engine, container: container.map(str::to_owned), ..Settings::default() };
        let pod = pod(words);
        let found = find(Pod(&pod), &settings, asked)?;
        Ok(format!("{} {} {}", found.container.name(), found.engine, found.guessed_by.unwrap_or("said")))
    }

    #[test]
    fn what_is_said_goes_before_what_is_guessed() {
        use Asked::{Label, Namespace};
        use Engine::{MariaDB, PostgreSQL};
        let table = [
            ("db=postgres", None, None, Label, "db PostgreSQL image"),
            ("db=postgres", None, None, Namespace, "db PostgreSQL image"),
            ("web=nginx db=mariadb", None, None, Namespace, "db MariaDB image"),
            ("web=nginx | db=mariadb", None, None, Namespace, "db MariaDB image"),
            ("db=postgres metrics=postgres-exporter", None, None, Namespace, "db PostgreSQL image"),
            ("db=corp/orders@5432", None, None, Label, "db PostgreSQL port"),
            ("web=nginx db=corp/orders@5432", None, None, Label, "db PostgreSQL port"),
            ("db=corp/orders@5432", None, Some("db"), Namespace, "db PostgreSQL port"),
            ("db=corp/orders", Some(MariaDB), None, Namespace, "db MariaDB said"),
            ("db=mysql", Some(MariaDB), None, Label, "db MariaDB said"),
            ("a=corp/a db=corp/b@5432", Some(PostgreSQL), None, Label, "db PostgreSQL said"),
            ("a=postgres db=corp/b@5432", Some(PostgreSQL), None, Label, "a PostgreSQL said"),
            ("a=postgres-exporter@5432 db=corp/b", Some(PostgreSQL), None, Label, "db PostgreSQL said"),
            ("db=corp/b | log=corp/log", Some(MariaDB), None, Label, "db MariaDB said"),
            ("a=postgres b=postgres", None, Some("b"), Label, "b PostgreSQL image"),
            ("a=postgres b=mariadb", Some(MariaDB), Some("a"), Label, "a MariaDB said"),
        ];
        for (words, engine, container, asked, right) in table {
            assert_eq!(found(words, engine, container, asked).as_deref(), Ok(right), "{words}");
        }
    }

    #[test]
    fn what_is_not_clear_is_not_guessed() {
        use Asked::{Label, Namespace};
        use Engine::PostgreSQL;
        let table = [
            ("web=nginx", None, None, Namespace, "unlike"),
            ("db=corp/orders@5432", None, None, Namespace, "unlike"),
            ("db=mysql", None, None, Namespace, "MySQL"),
            ("db=mysql", None, None, Label, "MySQL"),
            ("web=nginx", None, None, Label, "annotate stillpoint.dev/engine"),
            ("db=corp/orders@3306", None, None, Label, "annotate stillpoint.dev/engine"),
            ("db=corp/orders", None, Some("db"), Label, "annotate stillpoint.dev/engine"),
            ("a=postgres b=mariadb", None, None, Label, "in a, b; annotate stillpoint.dev/container"),
            ("a=postgres b=postgres", Some(PostgreSQL), None, Label, "in a, b; annotate"),
            ("a=corp/a@5432 b=corp/b@5432", None, None, Label, "in a, b; annotate"),
            ("a=corp/a b=corp/b", Some(PostgreSQL), None, Label, "in a, b; annotate"),
            ("a=postgres", None, Some("b"), Label, "is \"b\"; the Pod has a"),
        ];
        for (words, engine, container, asked, why) in table {
            match found(words, engine, container, asked) {
                Err(NoDatabase::Unlike) => assert_eq!(why, "unlike", "{words}"),
                Err(NoDatabase::Unclear(said)) => assert!(said.contains(why), "{words}: {said}"),
                Ok(found) => panic!("{words}: {found}"),
            }
        }
    }
}
