//! The platform of the model: the state of each refresh token, and the effect of presenting a token.

/// Number of ticks (30 s) in which the platform answers a spent token again. A lease lasts one tick (15 s).
const GRACE: u8 = 2;

/// The platform's reaction to a refresh token that has already been spent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Mode {
    /// The token is refused.
    Strict,
    /// The token is refused, and all tokens of its family die.
    FamilyRevoking,
    /// Within the grace period the platform answers the same successor again. The platform documents this mode.
    Forgiving,
    /// Within the grace period the platform answers a new successor, and the first successor dies.
    Reissuing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Fate {
    Live,
    Spent { at: u8, successor: u8 },
    Dead,
}

/// A refresh token, identified by its number.
pub(super) type Token = u8;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Provider {
    mode: Mode,
    /// Family and fate of each token.
    tokens: Vec<(u8, Fate)>,
    families: u8,
}

impl Provider {
    pub(super) fn new(mode: Mode) -> Self {
        Self { mode, tokens: Vec::new(), families: 0 }
    }

    /// Issues the first token of a new family, as after consent.
    pub(super) fn grant(&mut self) -> Token {
        self.families += 1;
        self.issue(self.families)
    }

    fn issue(&mut self, family: u8) -> Token {
        self.tokens.push((family, Fate::Live));
        u8::try_from(self.tokens.len() - 1).expect("few tokens")
    }

    /// Presents a token. Returns its successor, or `None` for a refusal.
    pub(super) fn present(&mut self, token: Token, now: u8) -> Option<Token> {
        let (family, fate) = self.tokens[usize::from(token)];
        match fate {
            Fate::Live => {
                let successor = self.issue(family);
                self.tokens[usize::from(token)].1 = Fate::Spent { at: now, successor };
                Some(successor)
            }
            Fate::Spent { at, successor } if now - at < GRACE && self.mode == Mode::Forgiving => Some(successor),
            Fate::Spent { at, successor }
                if now - at < GRACE && self.mode == Mode::Reissuing && self.is_live(successor) =>
            {
                self.tokens[usize::from(successor)].1 = Fate::Dead;
                let successor = self.issue(family);
                self.tokens[usize::from(token)].1 = Fate::Spent { at, successor };
                Some(successor)
            }
            Fate::Spent { .. } if self.mode == Mode::FamilyRevoking => {
                for (_, fate) in self.tokens.iter_mut().filter(|(of, _)| *of == family) {
                    *fate = Fate::Dead;
                }
                None
            }
            Fate::Spent { .. } | Fate::Dead => None,
        }
    }

    fn is_live(&self, token: Token) -> bool {
        self.tokens[usize::from(token)].1 == Fate::Live
    }

    /// Returns true if the holder of this token can obtain a live token.
    pub(super) fn is_good(&self, token: Token, now: u8) -> bool {
        match self.tokens[usize::from(token)].1 {
            Fate::Live => true,
            Fate::Spent { at, successor } => {
                now - at < GRACE
                    && match self.mode {
                        Mode::Forgiving => self.is_good(successor, now),
                        Mode::Reissuing => self.is_live(successor),
                        Mode::Strict | Mode::FamilyRevoking => false,
                    }
            }
            Fate::Dead => false,
        }
    }

    /// Ends every family: all tokens die.
    pub(super) fn uninstall(&mut self) {
        for (_, fate) in &mut self.tokens {
            *fate = Fate::Dead;
        }
    }
}
