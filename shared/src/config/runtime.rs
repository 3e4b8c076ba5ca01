//! The variables that AWS Lambda sets for each process (AWS Lambda Developer Guide, "Using Lambda environment
//! variables").

use super::variable;

/// The variables that the Runtime API's client needs beside `AWS_LAMBDA_RUNTIME_API` and that are missing, with the
/// values to set. The client panics without these variables. Lambda sets all of them; other Runtime APIs may not.
pub fn runtime_variables(function: &str, lookup: &dyn Fn(&str) -> Option<String>) -> Vec<(&'static str, String)> {
    let mut wanted = Vec::new();
    for (variable, value) in [
        ("AWS_LAMBDA_FUNCTION_NAME", function),
        ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "128"),
        ("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST"),
    ] {
        // The memory size must also be a number. A variable whose default is a number must be a number.
        let is_number = |text: &str| text.parse::<i32>().is_ok();
        if !lookup(variable).is_some_and(|found| is_number(&found) || !is_number(value)) {
            wanted.push((variable, value.to_owned()));
        }
    }
    if let Some(api) = lookup("AWS_LAMBDA_RUNTIME_API")
        && !api.contains("://")
        && api.contains('/')
    {
        wanted.push(("AWS_LAMBDA_RUNTIME_API", format!("http://{api}")));
    }
    wanted
}

/// The highest number of events that Lambda gives this process at once. The number is one, except on Lambda Managed
/// Instances.
pub fn events_at_once() -> u32 {
    variable("AWS_LAMBDA_MAX_CONCURRENCY").and_then(|number| number.parse().ok()).unwrap_or(1).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_runtime_api_will_do() {
        let of = |vars: &[(&str, &str)]| {
            runtime_variables("relay", &|name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
        };
        let api = ("AWS_LAMBDA_RUNTIME_API", "127.0.0.1:9/relay");
        let set = of(&[api]);
        assert!(set.contains(&("AWS_LAMBDA_FUNCTION_NAME", "relay".into())), "{set:?}");
        assert!(set.contains(&("AWS_LAMBDA_RUNTIME_API", "http://127.0.0.1:9/relay".into())), "{set:?}");
        let set: Vec<_> = set.iter().map(|(n, v)| (*n, v.as_str())).collect();
        assert_eq!(of(&set), [], "nothing is left to set");
        let lambda = [("AWS_LAMBDA_RUNTIME_API", "127.0.0.1:9001"), set[0], set[1], set[2]];
        assert_eq!(of(&lambda), [], "Lambda's own are left alone");
    }
}
