//! A builder of one `UpdateItem`: its clauses, its condition, and the names and values in both.
//!
//! All writes of the table use [`Update`]. Clauses may be added in any order and by several functions, and each clause
//! appears once in the update expression ("Update expressions", Amazon DynamoDB Developer Guide). In debug builds, and
//! therefore in all tests, [`Table::write`] panics if an expression refers to a missing value, or if a name or a value
//! is not used. `DynamoDB` refuses both, but only when the write is sent.
//!
//! The SDK for Rust has no such builder. The crate `dynamodb-expression` is a beta and checks neither.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;
use std::pin::Pin;

use aws_sdk_dynamodb::config::Builder;
use aws_sdk_dynamodb::config::retry::RetryConfig;
use aws_sdk_dynamodb::error::SdkError;
use aws_sdk_dynamodb::operation::update_item::{UpdateItemError, UpdateItemOutput};
use aws_sdk_dynamodb::types::{AttributeValue, ReturnValue, ReturnValuesOnConditionCheckFailure};

use super::{Item, StoreError, Table, Write, s};

/// The memory of a clause, in bytes. A clause that grows piece by piece would move several times.
const USUAL_LENGTH: usize = 256;

/// A conditional write of one item. An attribute that is written with a `#`, such as `#status`, has a name that is a
/// reserved word of `DynamoDB`.
#[derive(Clone, Debug)]
#[must_use]
pub(crate) struct Update {
    key: String,
    set: String,
    remove: String,
    add: String,
    delete: String,
    condition: String,
    names: HashMap<String, String>,
    values: Item,
    /// The part of the item that `DynamoDB` returns if the condition holds.
    answer: ReturnValue,
    /// True if the write must not be sent again after its answer was lost.
    is_sent_once: bool,
}

impl Update {
    /// A write of the item with this key. Without a condition, the write creates a missing item.
    pub(crate) fn of(key: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            set: String::with_capacity(USUAL_LENGTH),
            remove: String::new(),
            add: String::new(),
            delete: String::new(),
            condition: String::with_capacity(USUAL_LENGTH),
            names: HashMap::new(),
            values: Item::new(),
            answer: ReturnValue::AllNew,
            is_sent_once: false,
        }
    }

    /// `SET attribute = value`.
    pub(crate) fn set(&mut self, attribute: &str, value: AttributeValue) -> &mut Self {
        let placeholder = self.next_value(value);
        self.set_to(attribute, &placeholder)
    }

    /// `SET attribute = expression`. [`Self::value`] gives the values of the expression.
    pub(crate) fn set_to(&mut self, attribute: &str, expression: &str) -> &mut Self {
        self.use_names(attribute);
        self.use_names(expression);
        clause(&mut self.set, ", ", &[attribute, " = ", expression]);
        self
    }

    /// `REMOVE` these attributes.
    pub(crate) fn remove<'a>(&mut self, attributes: impl IntoIterator<Item = &'a str>) -> &mut Self {
        for attribute in attributes {
            self.use_names(attribute);
            clause(&mut self.remove, ", ", &[attribute]);
        }
        self
    }

    /// `ADD attribute value`: adds to a number or to a set.
    pub(crate) fn add(&mut self, attribute: &str, value: AttributeValue) -> &mut Self {
        let placeholder = self.next_value(value);
        self.use_names(attribute);
        clause(&mut self.add, ", ", &[attribute, " ", &placeholder]);
        self
    }

    /// `DELETE attribute value`: removes elements from a set.
    pub(crate) fn delete(&mut self, attribute: &str, value: AttributeValue) -> &mut Self {
        let placeholder = self.next_value(value);
        self.use_names(attribute);
        clause(&mut self.delete, ", ", &[attribute, " ", &placeholder]);
        self
    }

    /// Adds a condition: the write is applied only if all conditions hold. [`Self::value`] gives the values of the
    /// condition. A condition with an `OR` must not be in brackets as a whole, because this method adds the brackets.
    pub(crate) fn when(&mut self, condition: &str) -> &mut Self {
        self.use_names(condition);
        let (open, close) = if condition.contains(" OR ") { ("(", ")") } else { ("", "") };
        clause(&mut self.condition, " AND ", &[open, condition, close]);
        self
    }

    /// Adds the condition that the attribute has this value.
    pub(crate) fn when_equal(&mut self, attribute: &str, value: AttributeValue) -> &mut Self {
        let placeholder = self.next_value(value);
        self.use_names(attribute);
        clause(&mut self.condition, " AND ", &[attribute, " = ", &placeholder]);
        self
    }

    /// Sets the value of a placeholder such as `:now`.
    ///
    /// # Panics
    /// In debug builds, if the placeholder has another value.
    pub(crate) fn value(&mut self, placeholder: &str, value: AttributeValue) -> &mut Self {
        let earlier = self.values.insert(placeholder.to_owned(), value);
        debug_assert!(
            earlier.is_none_or(|earlier| self.values[placeholder] == earlier),
            "{placeholder} has two values in the write of {}",
            self.key
        );
        self
    }

    /// Sets the attribute that a placeholder such as `#slot` stands for, if the attribute has another name.
    pub(crate) fn name(&mut self, placeholder: &str, attribute: impl Into<String>) -> &mut Self {
        self.names.insert(placeholder.to_owned(), attribute.into());
        self
    }

    /// Sets the part of the item that `DynamoDB` returns, instead of the whole item after the write.
    pub(crate) fn answer(&mut self, answer: ReturnValue) -> &mut Self {
        self.answer = answer;
        self
    }

    /// Makes the SDK send the write only once, so that a lost answer never leads to a second write.
    pub(crate) fn send_once(&mut self) -> &mut Self {
        self.is_sent_once = true;
        self
    }

    /// Adds a value and returns its placeholder.
    fn next_value(&mut self, value: AttributeValue) -> String {
        let placeholder = format!(":v{}", self.values.len());
        self.values.insert(placeholder.clone(), value);
        placeholder
    }

    /// Makes each `#name` stand for the attribute of that name, unless [`Self::name`] sets another.
    fn use_names(&mut self, text: &str) {
        for name in placeholders(text, '#') {
            self.names.entry(name.to_owned()).or_insert_with(|| name[1..].to_owned());
        }
    }

    fn expression(&self) -> String {
        let mut expression = String::new();
        for (word, clause) in
            [("SET", &self.set), ("REMOVE", &self.remove), ("ADD", &self.add), ("DELETE", &self.delete)]
        {
            if !clause.is_empty() {
                let space = if expression.is_empty() { "" } else { " " };
                write!(expression, "{space}{word} {clause}").expect("writing to a string");
            }
        }
        expression
    }

    /// Compares the placeholders in the expressions with the given names and values.
    ///
    /// # Errors
    /// The placeholders that are missing, and the names and values that are not used.
    fn check(&self) -> Result<(), String> {
        let texts = [&self.set, &self.remove, &self.add, &self.delete, &self.condition];
        let used = |mark| texts.into_iter().flat_map(move |text| placeholders(text, mark)).collect::<BTreeSet<_>>();
        let given = self.names.keys().chain(self.values.keys()).map(String::as_str).collect::<BTreeSet<_>>();
        let used: BTreeSet<_> = used('#').into_iter().chain(used(':')).collect();
        let missing: Vec<_> = used.difference(&given).collect();
        let unused: Vec<_> = given.difference(&used).collect();
        if missing.is_empty() && unused.is_empty() && !self.expression().is_empty() {
            return Ok(());
        }
        let (expression, condition) = (self.expression(), &self.condition);
        Err(format!("missing {missing:?}, not used {unused:?} in \"{expression}\" if \"{condition}\""))
    }
}

/// Appends a part to a clause.
fn clause(clause: &mut String, separator: &str, parts: &[&str]) {
    if !clause.is_empty() {
        clause.push_str(separator);
    }
    clause.extend(parts.iter().copied());
}

/// The placeholders in a text that begin with `mark`.
fn placeholders(text: &str, mark: char) -> impl Iterator<Item = &str> {
    text.match_indices(mark).map(|(at, _)| {
        let after = &text[at + 1..];
        let end = after.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(after.len());
        &text[at..=at + end]
    })
}

impl Table {
    /// Sends a write. Returns the item after the write or, if the condition did not hold, the unchanged item.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]: the write may or may not have been applied.
    pub(crate) async fn write(&self, update: Update) -> Result<Write<Item>, StoreError> {
        match self.send(update).await {
            Ok(output) => Ok(Write::Applied(output.attributes.unwrap_or_default())),
            Err(SdkError::ServiceError(error)) if error.err().is_conditional_check_failed_exception() => {
                let UpdateItemError::ConditionalCheckFailedException(failed) = error.into_err() else { unreachable!() };
                Ok(failed.item.map_or(Write::NotFound, Write::Conflict))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The request of a write. It is boxed and made by a plain function, because the SDK's builder and future are large: they
    /// would be part of the futures of all callers.
    fn send(&self, update: Update) -> Sending {
        debug_assert_eq!(update.check(), Ok(()), "the write of {}", update.key);
        let expression = update.expression();
        let condition = (!update.condition.is_empty()).then_some(update.condition);
        let on_failure = condition.as_ref().map(|_| ReturnValuesOnConditionCheckFailure::AllOld);
        let request = self
            .client
            .update_item()
            .table_name(&*self.name)
            .key("pk", s(update.key))
            .update_expression(expression)
            .set_condition_expression(condition)
            .set_expression_attribute_names((!update.names.is_empty()).then_some(update.names))
            .set_expression_attribute_values((!update.values.is_empty()).then_some(update.values))
            .return_values(update.answer)
            .set_return_values_on_condition_check_failure(on_failure);
        // A configuration override is created only if needed: it costs each call a configuration of its own, even if it changes
        // nothing.
        if update.is_sent_once {
            let once = Builder::new().retry_config(RetryConfig::disabled());
            Box::pin(request.customize().config_override(once).send())
        } else {
            Box::pin(request.send())
        }
    }
}

type Sending = Pin<Box<dyn Future<Output = Result<UpdateItemOutput, SdkError<UpdateItemError>>> + Send>>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::n;

    #[test]
    fn clauses_come_in_any_order_and_each_stands_once() {
        let mut update = Update::of("k");
        update.remove(["a"]).set("#status", s("Active")).add("revision", n(1)).when("attribute_exists(b)");
        update.remove(["#scope"]).set_to("c", "if_not_exists(c, :zero)").value(":zero", n(0)).delete("ids", n(2));
        update.when("c = :zero OR #slot > :zero").name("#slot", "7").when_equal("d", n(9));
        assert_eq!(
            update.expression(),
            "SET #status = :v0, c = if_not_exists(c, :zero) REMOVE a, #scope ADD revision :v1 DELETE ids :v3"
        );
        assert_eq!(update.condition, "attribute_exists(b) AND (c = :zero OR #slot > :zero) AND d = :v4");
        let names = [("#status", "status"), ("#scope", "scope"), ("#slot", "7")];
        assert_eq!(update.names, names.map(|(key, name)| (key.to_owned(), name.to_owned())).into());
        assert_eq!((&update.values[":v0"], &update.values[":v4"]), (&s("Active"), &n(9)));
        assert_eq!(update.check(), Ok(()));
    }

    #[test]
    fn a_placeholder_that_is_missing_or_not_used_is_found() {
        let write = || {
            let mut update = Update::of("k");
            update.set("a", n(1));
            update
        };
        assert_eq!(write().check(), Ok(()));
        let found = |update: &mut Update, what: &str| {
            let error = update.check().expect_err(what);
            assert!(error.contains(what), "{error}");
        };
        found(write().when("b = :b"), r#"missing [":b"], not used []"#);
        found(write().set_to("c", "c + :one"), r#"missing [":one"], not used []"#);
        found(write().value(":b", n(1)), r#"missing [], not used [":b"]"#);
        // A longer placeholder does not count as a use of a shorter one.
        found(write().value(":b", n(1)).when("b = :bb"), r#"missing [":bb"], not used [":b"]"#);
        found(write().name("#slot", "7"), r##"missing [], not used ["#slot"]"##);
        found(&mut Update::of("k"), "missing [], not used [] in \"\"");
    }

    #[test]
    #[should_panic(expected = ":now has two values in the write of k")]
    fn a_placeholder_has_one_value() {
        let _ = Update::of("k").value(":now", n(1)).value(":now", n(1)).value(":now", n(2));
    }
}
