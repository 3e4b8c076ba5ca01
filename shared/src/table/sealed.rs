//! Sealed tokens, read and replaced for the rotation of a data key. The only writes of tokens that leave the lineage as
//! it is: what is sealed stays the same, only the key under it changes.

use super::installation::{Installation, SealedPair, b};
use super::survey::Part;
use super::{Item, StoreError, Table, Written, s, written};

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
    /// was committed or parked meanwhile stays. Says whether it was done.
    ///
    /// # Errors
    /// [`StoreError`]: it may or may not have been applied.
    pub async fn reseal(
        &self,
        seen: &Installation,
        pair: Option<&SealedPair>,
        alternate: Option<&SealedPair>,
    ) -> Result<bool, StoreError> {
        let mut conditions = vec!["epoch = :epoch AND generation = :generation"];
        let mut sets = Vec::new();
        let mut write = self.change(&seen.resource, seen.lineage);
        if let (Some(new), Some(old)) = (pair, &seen.pair) {
            conditions.push("access_token = :seen_access");
            sets.push("access_token = :access");
            write = write
                .expression_attribute_values(":seen_access", b(&old.access))
                .expression_attribute_values(":access", b(&new.access));
            if let (Some(new), Some(old)) = (&new.refresh, &old.refresh) {
                conditions.push("refresh_token = :seen_refresh");
                sets.push("refresh_token = :refresh");
                write = write
                    .expression_attribute_values(":seen_refresh", b(old))
                    .expression_attribute_values(":refresh", b(new));
            }
        }
        if let (Some(new), Some(old)) = (alternate, &seen.alternate) {
            conditions.push("alternate = :seen_alternate");
            sets.push("alternate = :alternate");
            write = write
                .expression_attribute_values(":seen_alternate", old.to_map())
                .expression_attribute_values(":alternate", new.to_map());
        }
        if sets.is_empty() {
            return Ok(true);
        }
        let write = write.condition_expression(conditions.join(" AND "));
        let result = write.update_expression(format!("SET {}", sets.join(", "))).send().await;
        Ok(matches!(written(result)?, Written::Applied(_)))
    }
}
