//! Sealed tokens, read and replaced for the rotation of a data key. The only writes of tokens that leave the version as
//! it is: what is sealed stays the same, only the key under it changes.

use super::installation::b;
use super::survey::Part;
use super::{Item, StoreError, Table, Written, s, written};
use crate::domain::installation::{Installation, SealedPair};

impl Table {
    /// Some installations with their sealed tokens, as they are now. Reads the whole table, a megabyte at a time.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn sealed(&self, from: Option<Item>) -> Result<Part<Installation>, StoreError> {
        let scan = self.client.scan().table_name(&*self.name).set_exclusive_start_key(from).consistent_read(true);
        let scan = scan.filter_expression("begins_with(pk, :kind)");
        let answer = scan.expression_attribute_values(":kind", s("installation#")).send().await?;
        let items = answer.items().iter().map(Installation::read).collect();
        Ok(Part { items, next: answer.last_evaluated_key })
    }

    /// Replaces the sealed tokens of `seen` by the same ones sealed anew, if all of them are still as seen: a pair that
    /// was committed or added meanwhile stays. `standby` has one element for each standby pair. Says whether it was done.
    ///
    /// # Errors
    /// [`StoreError`]: it may or may not have been applied.
    pub async fn reseal(
        &self,
        seen: &Installation,
        pair: Option<&SealedPair>,
        standby: &[SealedPair],
    ) -> Result<bool, StoreError> {
        let mut conditions = vec!["epoch = :epoch AND generation = :generation".to_owned()];
        let mut sets: Vec<String> = Vec::new();
        let mut write = self.change(&seen.resource, seen.version);
        if let (Some(new), Some(old)) = (pair, &seen.pair) {
            conditions.push("access_token = :seen_access".to_owned());
            sets.push("access_token = :access".to_owned());
            write = write
                .expression_attribute_values(":seen_access", b(&old.access))
                .expression_attribute_values(":access", b(&new.access));
            if let (Some(new), Some(old)) = (&new.refresh, &old.refresh) {
                conditions.push("refresh_token = :seen_refresh".to_owned());
                sets.push("refresh_token = :refresh".to_owned());
                write = write
                    .expression_attribute_values(":seen_refresh", b(old))
                    .expression_attribute_values(":refresh", b(new));
            }
        }
        for (place, (new, old)) in standby.iter().zip(&seen.standby).enumerate() {
            let refresh = new.refresh.as_ref().zip(old.pair.refresh.as_ref());
            let tokens = [Some(("access_token", &new.access, &old.pair.access))];
            let tokens = tokens.into_iter().chain([refresh.map(|(new, old)| ("refresh_token", new, old))]).flatten();
            for (name, new, old) in tokens {
                conditions.push(format!("standby[{place}].{name} = :seen_{place}_{name}"));
                sets.push(format!("standby[{place}].{name} = :{place}_{name}"));
                write = write
                    .expression_attribute_values(format!(":seen_{place}_{name}"), b(old))
                    .expression_attribute_values(format!(":{place}_{name}"), b(new));
            }
        }
        if sets.is_empty() {
            return Ok(true);
        }
        let write = write.condition_expression(conditions.join(" AND "));
        let result = write.update_expression(format!("SET {}", sets.join(", "))).send().await;
        Ok(matches!(written(result)?, Written::Applied(_)))
    }
}
