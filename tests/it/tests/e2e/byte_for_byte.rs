//! A request or an answer that passes through the relay equals a direct one, except for the differences that
//! docs/calling.md lists.
//!
//! Each test sends raw bytes twice: to the platform with its token, and to the gateway with a caller's key. A wire in
//! front of the platform records the bytes that arrive in both cases.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use it::outside::{Setup, System, location};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A connection to the platform that records the bytes sent through it.
struct Wire {
    address: SocketAddr,
    sent: Arc<Mutex<Vec<u8>>>,
    /// The address of the platform, which is known only after the platform has started.
    platform: Arc<Mutex<String>>,
}

impl Wire {
    async fn lay() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let wire =
            Self { address: listener.local_addr().expect("bound"), sent: Arc::default(), platform: Arc::default() };
        let (sent, platform) = (wire.sent.clone(), wire.platform.clone());
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let platform = platform.lock().unwrap_or_else(PoisonError::into_inner).clone();
                tokio::spawn(carry(near, platform, sent.clone()));
            }
        });
        wire
    }

    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.sent.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn carry(near: TcpStream, platform: String, sent: Arc<Mutex<Vec<u8>>>) {
    let far = TcpStream::connect(platform).await.expect("the platform runs");
    let ((mut from_near, mut to_near), (mut from_far, mut to_far)) = (near.into_split(), far.into_split());
    let there = async move {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(length @ 1..) = from_near.read(&mut buffer).await {
            // The bytes are recorded before they are passed on, so a test that has the answer finds them in the record.
            sent.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&buffer[..length]);
            if to_far.write_all(&buffer[..length]).await.is_err() {
                break;
            }
        }
    };
    tokio::join!(there, async move { tokio::io::copy(&mut from_far, &mut to_near).await.ok() });
}

/// A request or an answer: its first line, its headers by lower-case name, and its body.
#[derive(Debug, PartialEq)]
struct Message {
    first: String,
    headers: BTreeSet<(String, String)>,
    body: Vec<u8>,
}

impl Message {
    fn read(bytes: &[u8]) -> Option<Self> {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
        let head = std::str::from_utf8(&bytes[..end]).expect("text");
        let mut lines = head.split("\r\n").map(str::to_owned);
        let first = lines.next()?;
        let headers = lines.filter_map(|line| {
            let (name, value) = line.split_once(':')?;
            Some((name.to_lowercase(), value.trim().to_owned()))
        });
        Some(Self { first, headers: headers.collect(), body: bytes[end + 4..].to_vec() })
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Removes the headers of these names. Returns the names of the headers that were present.
    fn without(&mut self, names: &[&str]) -> BTreeSet<String> {
        let (gone, kept) = std::mem::take(&mut self.headers).into_iter().partition(|(n, _)| names.contains(&&**n));
        self.headers = kept;
        let gone: BTreeSet<(String, String)> = gone;
        gone.into_iter().map(|(name, _)| name).collect()
    }
}

/// Sends bytes and reads one answer.
async fn exchange(to: &str, request: &[u8]) -> Message {
    let mut stream = TcpStream::connect(to).await.expect("it runs");
    stream.write_all(request).await.expect("written");
    let is_head = request.starts_with(b"HEAD ");
    let mut bytes = Vec::new();
    loop {
        if let Some(message) = Message::read(&bytes) {
            let announced = message.header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
            if is_head || message.body.len() >= announced {
                return message;
            }
        }
        assert!(stream.read_buf(&mut bytes).await.expect("read") > 0, "cut off: {}", String::from_utf8_lossy(&bytes));
    }
}

/// One request: method, target below the base, header lines, body.
type Case = (&'static str, &'static str, &'static [&'static str], &'static [u8]);

const JSON: &str = "content-type: application/json";
const GZIP: &[u8] = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\xff\xabVJT\xb22\xac\x05\x00\xac\x36\xbe\x71\x07\x00\x00\x00";

const CASES: [Case; 17] = [
    ("GET", "/echo", &[], b""),
    ("GET", "/echo/a-b/c.d/~e/!$&'()*+,;=:@/", &["Accept: */*", "User-Agent: own/1 (x)", "Accept-Encoding: gzip"], b""),
    ("GET", "/echo/a%20b/%C3%A9", &[], b""),
    ("GET", "/echo?q='it''s'&r=a+b%20c%2Fd%2f&&=&flag&e=&tag=a&tag=b", &[], b""),
    ("GET", "/echo?filter[a]={b}|^`\\~!$()*,;:@/?x=%zz%&u=%ff", &[], b""),
    ("HEAD", "/echo?x=1", &[], b""),
    ("OPTIONS", "/echo", &[], b""),
    ("DELETE", "/echo/1", &[], b""),
    ("DELETE", "/echo/1", &[JSON], b"{\"why\" : 1}"),
    ("POST", "/echo", &["Content-Length: 0"], b""),
    ("POST", "/echo", &[JSON, "X-Sdk-Version: 3.1.0", "Source: INTEGRATION", "Channel: OAUTH"], b"{ \"z\" :1.10,\r\n\"z\":\"\\u00e9\\/\" }\n"),
    ("PUT", "/echo", &["content-type: application/octet-stream"], b"\x00\xff\xfe\r\n\r\n\x80"),
    ("PATCH", "/echo", &["content-type: application/json", "content-encoding: gzip"], GZIP),
    ("POST", "/echo", &["content-type: multipart/form-data; boundary=\"--x y\""], b"----x y\r\nContent-Disposition: form-data; name=\"f\"; filename=\"\xc3\xa9\"\r\nContent-Type: image/png\r\n\r\n\x89PNG\r\n\x1a\n\x00\r\n----x y--\r\n"),
    ("GET", "/gzip", &[], b""),
    ("GET", "/bytes", &["Range: bytes=0-9", "If-None-Match: \"7\""], b""),
    ("GET", "/status/301", &[], b""),
];

fn raw(case: &Case, prefix: &str, host: &str, bearer: &str) -> Vec<u8> {
    let (method, target, headers, body) = case;
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}", body.len()) };
    let start = format!("{method} {prefix}{target} HTTP/1.1");
    let (host, bearer) = (format!("Host: {host}"), format!("Authorization: Bearer {bearer}"));
    let own = [&*start, &*host, &*bearer, "Version: 2021-07-28", &*length];
    let lines: Vec<_> = own.into_iter().chain(headers.iter().copied()).filter(|line| !line.is_empty()).collect();
    [lines.join("\r\n").as_bytes(), b"\r\n\r\n", body].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn relayed_calls_equal_direct_calls_except_for_the_documented_differences() {
    let wire = Wire::lay().await;
    let environment = vec![("API_URL", format!("http://{}", wire.address))];
    let system = System::start(Setup { environment, relays: 1, ..Setup::default() }).await;
    let platform = system.sandbox.marketplace.url().trim_start_matches("http://").to_owned();
    wire.platform.lock().expect("whole").clone_from(&platform);
    system.install(&location(1)).await;
    let marketplace = &system.sandbox.marketplace;
    let token = marketplace.every_secret().into_iter().find(|secret| marketplace.takes_access_token(secret));
    let token = token.expect("an access token");
    let gateway = system.sandbox.gateway.url().trim_start_matches("http://").to_owned();
    let key = &system.sandbox.caller_key;
    let host = wire.address.to_string();

    for case in &CASES {
        for prefix in [format!("/relay/locations/{}", location(1).id()), "/api".to_owned()] {
            wire.take();
            // The direct request also has the header that names the resource, so both requests can be compared.
            let mut named = *case;
            let owned: Vec<&'static str> = [case.2, &["X-Location-Id: HLlocation000000001"]].concat();
            named.2 = Box::leak(owned.into_boxed_slice());
            let direct_answer = exchange(&host, &raw(&named, "", &host, &token)).await;
            let direct = wire.take();
            let relayed_answer = exchange(&gateway, &raw(&named, &prefix, &gateway, key)).await;
            let relayed = wire.take();
            let told = format!("{case:?} by {prefix}");

            let mut direct = Message::read(&direct).expect("sent");
            let mut relayed = Message::read(&relayed).expect("sent");
            // A `content-length: 0` is not compared: an empty body needs no length, and has one only where one is
            // expected.
            for message in [&mut direct, &mut relayed] {
                message.headers.retain(|(name, value)| !(name == "content-length" && value == "0"));
            }
            // If the request has no user agent, the relay adds its own.
            if !direct.headers.iter().any(|(name, _)| name == "user-agent") {
                let before = relayed.headers.len();
                relayed.headers.retain(|(name, value)| name != "user-agent" || !value.starts_with("hoopai-relay/"));
                assert_eq!(relayed.headers.len() + 1, before, "{told}");
            }
            assert_eq!(relayed, direct, "{told}");
            expect_same_answer(direct_answer, relayed_answer, &told);
        }
    }
    system.end().await;
}

fn expect_same_answer(mut direct: Message, mut relayed: Message, told: &str) {
    let status = |message: &Message| message.first.split(' ').nth(1).map(str::to_owned);
    assert_eq!(status(&relayed), status(&direct), "{told}");
    // The body of an echo contains the headers in order, and that order may differ. The arrived requests were compared
    // above.
    if !told.contains("/echo") {
        assert_eq!(relayed.body, direct.body, "{told}");
    }
    let ours = ["relay-source", "relay-request-id"];
    assert_eq!(relayed.without(&ours).len(), 2, "{told}");
    // The platform and the gateway each write their own values of these headers.
    let apart = [
        "content-length",
        "date",
        "apigw-requestid",
        "connection",
        "x-ratelimit-remaining",
        "x-ratelimit-daily-remaining",
        "x-ratelimit-daily-reset",
    ];
    let (limits, _) = (relayed.without(&apart), direct.without(&apart));
    assert!(limits.contains("x-ratelimit-remaining") && limits.contains("x-ratelimit-daily-remaining"), "{told}");
    direct.without(&["set-cookie", "access-control-allow-origin", "keep-alive", "server"]);
    assert_eq!(relayed.headers, direct.headers, "{told}");
}
