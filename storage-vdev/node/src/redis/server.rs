//! Getting into a server, and finding out what its word is worth.

use zeroize::Zeroizing;

use super::resp::{Argument, Connection, Reply};
use super::{RedisError, RedisOptions};

/// What a server has told about itself.
pub(super) struct Server {
    /// Redis or a work-alike; else a 0-db.
    pub(super) is_redis: bool,
    /// Whether an acknowledged write outlives a power cut.
    pub(super) durable: bool,
    /// If it isn't: what to tell the operator.
    pub(super) warning: Option<String>,
    /// Another one after each start.
    pub(super) run_id: String,
}

impl Server {
    /// Authenticates, selects the database, and asks.
    pub(super) fn greet(
        connection: &mut Connection,
        options: &RedisOptions,
    ) -> Result<Self, RedisError> {
        let first = ask(connection, &["INFO".into()])?;
        let is_redis = match &first {
            Reply::Error(message) if message.starts_with("NOAUTH") => true,
            reply => {
                let text = text(reply).unwrap_or_default();
                if text.contains("0-db") {
                    false
                } else if field(&text, "redis_version").is_some() {
                    true
                } else {
                    return Err(RedisError::Unknown);
                }
            }
        };
        if is_redis {
            Self::greet_redis(connection, options)
        } else {
            greet_zero_db(connection, options)
        }
    }

    fn greet_redis(
        connection: &mut Connection,
        options: &RedisOptions,
    ) -> Result<Self, RedisError> {
        if let Some(password) = &options.password {
            accept(connection, "AUTH", &["AUTH".into(), password.as_str().into()])?;
        }
        if let Some(database) = &options.database {
            accept(connection, "SELECT", &["SELECT".into(), database.as_str().into()])?;
        }
        let info = ask(connection, &["INFO".into(), "server".into()])?;
        let info = text(&info).ok_or_else(|| refused("INFO", &info))?;
        let run_id = field(&info, "run_id").unwrap_or_default().to_owned();
        let wanted = [
            ("appendonly", "yes"),
            ("appendfsync", "always"),
            ("no-appendfsync-on-rewrite", "no"),
            ("maxmemory-policy", "noeviction"),
        ];
        let mut wrong = vec![];
        for (name, right) in wanted {
            match config(connection, name)? {
                Some(value) if value == right => {}
                Some(value) => wrong.push(format!("{name} is {value}, not {right}")),
                None => wrong.push(format!("{name} is not told")),
            }
        }
        let durable = wrong.is_empty();
        let warning = (!durable).then(|| {
            format!("this Redis may lose writes that it has acknowledged: {}", wrong.join(", "))
        });
        Ok(Self { is_redis: true, durable, warning, run_id })
    }
}

fn greet_zero_db(
    connection: &mut Connection,
    options: &RedisOptions,
) -> Result<Server, RedisError> {
    let namespace = options.database.as_deref().unwrap_or("default");
    match &options.password {
        None => accept(connection, "SELECT", &["SELECT".into(), namespace.into()])?,
        Some(password) => {
            let challenge = ask(connection, &["AUTH".into(), "SECURE".into(), "CHALLENGE".into()])?;
            let challenge = text(&challenge).ok_or_else(|| refused("AUTH SECURE", &challenge))?;
            let proof = prove(&challenge, password);
            let select =
                ["SELECT".into(), namespace.into(), "SECURE".into(), proof.as_str().into()];
            accept(connection, "SELECT", &select)?;
        }
    }
    let info = ask(connection, &["NSINFO".into(), namespace.into()])?;
    let info = text(&info).ok_or_else(|| refused("NSINFO", &info))?;
    let mode = field(&info, "mode").unwrap_or("unknown");
    if !mode.starts_with("user") {
        return Err(RedisError::Mode { mode: mode.to_owned() });
    }
    let general = ask(connection, &["INFO".into()])?;
    let general = text(&general).unwrap_or_default();
    let warning =
        "a 0-db doesn't tell whether it was started with --sync; without it, it may lose \
                   writes that it has acknowledged"
            .to_owned();
    Ok(Server {
        is_redis: false,
        durable: false,
        warning: Some(warning),
        run_id: field(&general, "boot_time").unwrap_or_default().to_owned(),
    })
}

/// What shows a 0-db that we know the password: the SHA-1 of `challenge:password`, in hexadecimal.
pub(super) fn prove(challenge: &str, password: &Zeroizing<String>) -> String {
    let text = Zeroizing::new(format!("{challenge}:{}", password.as_str()));
    let sha1 = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
    sha1.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The value of `name: value` or `name:value` in what INFO says.
pub(super) fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim))
}

fn config(connection: &mut Connection, name: &str) -> Result<Option<String>, RedisError> {
    // Some services forbid CONFIG; then nothing is known.
    match ask(connection, &["CONFIG".into(), "GET".into(), name.into()])? {
        Reply::Array(pair) => Ok(pair.get(1).and_then(text)),
        _ => Ok(None),
    }
}

fn ask(connection: &mut Connection, command: &[Argument<'_>]) -> Result<Reply, RedisError> {
    connection.call(&[command])?.pop().ok_or(RedisError::Unknown)
}

fn accept(
    connection: &mut Connection,
    name: &'static str,
    command: &[Argument<'_>],
) -> Result<(), RedisError> {
    match ask(connection, command)? {
        Reply::Text(_) => Ok(()),
        other => Err(refused(name, &other)),
    }
}

fn text(reply: &Reply) -> Option<String> {
    String::from_utf8(reply.bytes()?.to_vec()).ok()
}

fn refused(command: &'static str, reply: &Reply) -> RedisError {
    let message = match reply {
        Reply::Error(message) => message.clone(),
        _ => "an answer that makes no sense".to_owned(),
    };
    RedisError::Refused { command, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_with_and_without_a_space() {
        let info =
            "# server\r\nrun_id:abc\r\nmode: userkey\nused_memory_human:3M\r\nused_memory:7\r\n";
        assert_eq!(field(info, "run_id"), Some("abc"));
        assert_eq!(field(info, "mode"), Some("userkey"));
        assert_eq!(field(info, "used_memory"), Some("7"));
        assert_eq!(field(info, "absent"), None);
    }

    #[test]
    fn a_challenge_is_answered_with_the_sha1_of_it_and_the_password() {
        // printf 'abc:def' | sha1sum
        let proof = prove("abc", &Zeroizing::new("def".to_owned()));
        assert_eq!(proof, "0ce84d8d01f2c7b6e0882b784429c54d280ea2d9");
    }
}
