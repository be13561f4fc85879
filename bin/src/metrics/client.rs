//! What a client asked for, and the answer. No socket is involved.

/// The longest request that is read: a GET with the headers that programs send.
pub(super) const REQUEST_MAX: usize = 4096;

/// What is to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// The text alone, to one who did not speak HTTP.
    Raw,
    Prometheus {
        body: bool,
    },
    Json {
        body: bool,
    },
    /// An HTTP status line, and no more.
    Refusal(&'static str),
}

/// The answer to what was received so far; none if there is more to come. `ended`: nothing comes any more.
pub(super) fn answer(received: &[u8], ended: bool) -> Option<Answer> {
    let methods = [&b"GET "[..], b"HEAD ", b"POST ", b"PUT ", b"DELETE ", b"OPTIONS "];
    let begins = |method: &&[u8]| {
        let length = method.len().min(received.len());
        method.get(..length) == received.get(..length)
    };
    // Nothing, or nothing of HTTP.
    if received.is_empty() || !methods.iter().any(begins) {
        return (ended || !received.is_empty()).then_some(Answer::Raw);
    }
    let complete = received.windows(4).any(|window| window == b"\r\n\r\n")
        || received.windows(2).any(|window| window == b"\n\n");
    match (complete, received.len() >= REQUEST_MAX || ended) {
        (true, _) => Some(http(received)),
        (false, true) => Some(Answer::Refusal("400 Bad Request")),
        (false, false) => None,
    }
}

fn http(request: &[u8]) -> Answer {
    let line = request.split(|&byte| byte == b'\r' || byte == b'\n').next().unwrap_or_default();
    let mut words = line.split(|&byte| byte == b' ');
    let body = match words.next() {
        Some(b"GET") => true,
        Some(b"HEAD") => false,
        _ => return Answer::Refusal("405 Method Not Allowed"),
    };
    let path = words.next().unwrap_or_default();
    match path.split(|&byte| byte == b'?').next().unwrap_or_default() {
        b"/" | b"/metrics" => Answer::Prometheus { body },
        b"/metrics.json" => Answer::Json { body },
        _ => Answer::Refusal("404 Not Found"),
    }
}

impl Answer {
    /// The bytes of it; `prometheus` and `json` make the content.
    pub(super) fn bytes(
        self,
        prometheus: impl FnOnce() -> String,
        json: impl FnOnce() -> String,
    ) -> Vec<u8> {
        let (status, kind, content, body) = match self {
            Self::Raw => return prometheus().into_bytes(),
            Self::Prometheus { body } => {
                ("200 OK", "text/plain; version=0.0.4; charset=utf-8", prometheus(), body)
            }
            Self::Json { body } => ("200 OK", "application/json", json(), body),
            Self::Refusal(status) => (status, "text/plain", String::new(), false),
        };
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            content.len()
        );
        let content = if body { content.as_str() } else { "" };
        [head.as_bytes(), content.as_bytes()].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_speaks_http_gets_http_and_others_the_text() {
        let so_far = |text: &[u8]| answer(text, false);
        for part in ["", "G", "GET", "GET /metrics HTTP/1.1\r\n", "HEAD / HTTP/1.0\r\nHost: x\r\n"]
        {
            assert_eq!(so_far(part.as_bytes()), None, "{part:?}");
        }
        let get = |path: &str| so_far(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes());
        for path in ["/", "/metrics", "/metrics?collect[]=x"] {
            assert_eq!(get(path), Some(Answer::Prometheus { body: true }), "{path}");
        }
        assert_eq!(get("/metrics.json"), Some(Answer::Json { body: true }));
        assert_eq!(get("/etc/passwd"), Some(Answer::Refusal("404 Not Found")));
        let refused = Some(Answer::Refusal("405 Method Not Allowed"));
        assert_eq!(so_far(b"POST /metrics HTTP/1.1\n\n"), refused);
        assert_eq!(so_far(b"HEAD /metrics HTTP/1.1\n\n"), Some(Answer::Prometheus { body: false }));
        for text in ["\n", "hello", "GIT", "\0\0"] {
            assert_eq!(so_far(text.as_bytes()), Some(Answer::Raw), "{text:?}");
        }
    }

    #[test]
    fn no_request_is_endless() {
        assert_eq!(answer(b"", true), Some(Answer::Raw));
        let refused = Some(Answer::Refusal("400 Bad Request"));
        assert_eq!(answer(b"GET /", true), refused);
        let mut endless = b"GET / HTTP/1.1\r\nX: ".to_vec();
        endless.resize(REQUEST_MAX - 1, b'x');
        assert_eq!(answer(&endless, false), None);
        endless.push(b'x');
        assert_eq!(answer(&endless, false), refused);
    }

    #[test]
    fn an_answer_says_how_long_it_is() {
        let bytes = |answer: Answer| {
            let bytes = answer.bytes(|| "a 1\n".to_owned(), || "{}".to_owned());
            String::from_utf8(bytes).unwrap()
        };
        assert_eq!(bytes(Answer::Raw), "a 1\n");
        let whole = bytes(Answer::Prometheus { body: true });
        assert!(whole.starts_with("HTTP/1.1 200 OK\r\n"), "{whole}");
        assert!(whole.ends_with("Content-Length: 4\r\nConnection: close\r\n\r\na 1\n"), "{whole}");
        let head = bytes(Answer::Json { body: false });
        assert!(head.ends_with("Content-Length: 2\r\nConnection: close\r\n\r\n"), "{head}");
        assert!(bytes(Answer::Refusal("404 Not Found")).starts_with("HTTP/1.1 404 Not Found\r\n"));
    }
}
