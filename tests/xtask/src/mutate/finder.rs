//! Finds the points of one source file.
//!
//! Left out: tests, what only loom compiles, constants and whatever is computed at compile time, patterns, types,
//! attributes, the insides of macros and of unsafe code, and how values print themselves.

use std::ops::Range;

use anyhow::{Context, Result};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{BinOp, Expr, Stmt};

use super::point::{Edit, Kind, NUMBER, Point, Side};

/// What a file holds.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Outer points before inner ones.
    pub(super) points: Vec<Point>,
    /// Names of modules in other files that are compiled for tests or loom only.
    pub(super) left_out: Vec<String>,
}

/// The points of `source`.
pub(super) fn find(source: &str) -> Result<Found> {
    let file = syn::parse_file(source).context("syn cannot read the file")?;
    let mut finder = Finder {
        source,
        found: Found::default(),
    };
    finder.visit_file(&file);
    Ok(finder.found)
}

struct Finder<'s> {
    source: &'s str,
    found: Found,
}

/// The call of an injected function, up to its first argument.
fn call(function: &str) -> String {
    format!("crate::levy_mutants::{function}({NUMBER}")
}

impl Finder<'_> {
    fn add(&mut self, kind: Kind, place: &impl Spanned, mutated: String, edits: Vec<Edit>) {
        self.found.points.push(Point {
            kind,
            line: place.span().start().line,
            original: self.text(&place.span().byte_range()),
            mutated,
            edits,
        });
    }

    /// The source of `span` on one line.
    fn text(&self, span: &Range<usize>) -> String {
        let text = self.source.get(span.clone()).unwrap_or_default();
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    fn condition(&mut self, condition: &Expr) {
        if has_let(condition) {
            return;
        }
        let span = condition.span().byte_range();
        let mutated = format!("!({})", self.text(&span));
        let edits = Point::around(&span, &format!("{}) != (", call("is")), ")");
        self.add(Kind::Condition, condition, mutated, edits);
    }

    fn comparison(&mut self, whole: &syn::ExprBinary, function: &str, other: &str) {
        let (left, right) = (whole.left.span().byte_range(), whole.right.span().byte_range());
        let mutated = format!("{} {other} {}", self.text(&left), self.text(&right));
        let mut edits = Point::around(&(left.start..right.end), &format!("{}, &(", call(function)), "))");
        let operator = Edit {
            at: whole.op.span().byte_range(),
            side: Side::Middle,
            text: "), &(".into(),
        };
        edits.insert(1, operator);
        self.add(Kind::Comparison, whole, mutated, edits);
    }

    /// Makes each side of `whole` what it is when it does not decide.
    fn operands(&mut self, whole: &syn::ExprBinary, neutral: &str, operator: &str) {
        for (dropped, kept) in [(&whole.left, &whole.right), (&whole.right, &whole.left)] {
            if has_let(dropped) {
                continue;
            }
            let mutated = self.text(&kept.span().byte_range());
            let before = format!("({neutral}{}) {operator} (", call("is"));
            let edits = Point::around(&dropped.span().byte_range(), &before, "))");
            self.add(Kind::Operand, whole, mutated, edits);
        }
    }
}

/// Whether a chain of conditions binds names.
fn has_let(condition: &Expr) -> bool {
    match condition {
        Expr::Let(_) => true,
        Expr::Binary(binary) => has_let(&binary.left) || has_let(&binary.right),
        Expr::Paren(inner) => has_let(&inner.expr),
        _ => false,
    }
}

/// Whether these attributes keep an item out of the program as it is tested by its users.
fn left_out(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        if attribute.path().is_ident("test") || attribute.path().is_ident("bench") {
            return true;
        }
        let syn::Meta::List(list) = &attribute.meta else {
            return false;
        };
        let text = list.tokens.to_string();
        let names = |name: &str| {
            text.split(|c: char| !c.is_alphanumeric() && c != '_')
                .any(|word| word == name)
        };
        attribute.path().is_ident("cfg") && (names("test") || names("loom")) && !names("not")
    })
}

/// Whether leaving `expression` out as a statement is a change: a call or an assignment. What `drop` is given would be
/// dropped at the end of its block, and the compiler refuses much of that far from the call.
fn has_effect(expression: &Expr) -> bool {
    match expression {
        Expr::Call(call) if matches!(&*call.func, Expr::Path(function) if function.path.is_ident("drop")) => {
            false
        }
        Expr::Call(_) | Expr::MethodCall(_) | Expr::Assign(_) => true,
        Expr::Try(tried) => has_effect(&tried.expr),
        Expr::Binary(binary) => is_assignment(&binary.op),
        _ => false,
    }
}

fn is_assignment(operator: &BinOp) -> bool {
    matches!(
        operator,
        BinOp::AddAssign(_)
            | BinOp::SubAssign(_)
            | BinOp::MulAssign(_)
            | BinOp::DivAssign(_)
            | BinOp::RemAssign(_)
            | BinOp::BitXorAssign(_)
            | BinOp::BitAndAssign(_)
            | BinOp::BitOrAssign(_)
            | BinOp::ShlAssign(_)
            | BinOp::ShrAssign(_)
    )
}

impl<'ast> Visit<'ast> for Finder<'_> {
    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        if !left_out(&module.attrs) {
            return visit::visit_item_mod(self, module);
        }
        if module.content.is_none() {
            self.found.left_out.push(module.ident.to_string());
        }
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        let name = item.trait_.as_ref().and_then(|(_, path, _)| path.segments.last());
        let prints = name.is_some_and(|name| name.ident == "Debug" || name.ident == "Display");
        if !prints && !left_out(&item.attrs) {
            visit::visit_item_impl(self, item);
        }
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        if item.sig.constness.is_none() && item.sig.unsafety.is_none() && !left_out(&item.attrs) {
            self.visit_block(&item.block);
        }
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        if item.sig.constness.is_none() && item.sig.unsafety.is_none() && !left_out(&item.attrs) {
            self.visit_block(&item.block);
        }
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        if let Some(block) = item.default.as_ref().filter(|_| item.sig.unsafety.is_none()) {
            self.visit_block(block);
        }
    }

    fn visit_stmt(&mut self, statement: &'ast Stmt) {
        if let Stmt::Expr(expression, Some(_)) = statement
            && has_effect(expression)
        {
            let span = statement.span().byte_range();
            let before = format!("if !{}) {{ ", call("is"));
            self.add(
                Kind::Statement,
                statement,
                String::new(),
                Point::around(&span, &before, " }"),
            );
        }
        visit::visit_stmt(self, statement);
    }

    fn visit_expr_if(&mut self, expression: &'ast syn::ExprIf) {
        self.condition(&expression.cond);
        visit::visit_expr_if(self, expression);
    }

    fn visit_expr_while(&mut self, expression: &'ast syn::ExprWhile) {
        self.condition(&expression.cond);
        visit::visit_expr_while(self, expression);
    }

    fn visit_arm(&mut self, arm: &'ast syn::Arm) {
        if let Some((_, guard)) = &arm.guard {
            self.condition(guard);
        }
        visit::visit_arm(self, arm);
    }

    fn visit_expr_binary(&mut self, expression: &'ast syn::ExprBinary) {
        match expression.op {
            BinOp::Lt(_) => self.comparison(expression, "lt", "<="),
            BinOp::Le(_) => self.comparison(expression, "le", "<"),
            BinOp::Gt(_) => self.comparison(expression, "gt", ">="),
            BinOp::Ge(_) => self.comparison(expression, "ge", ">"),
            BinOp::Eq(_) => self.comparison(expression, "eq", "!="),
            BinOp::Ne(_) => self.comparison(expression, "ne", "=="),
            BinOp::And(_) => self.operands(expression, "", "||"),
            BinOp::Or(_) => self.operands(expression, "!", "&&"),
            _ => {}
        }
        visit::visit_expr_binary(self, expression);
    }

    fn visit_expr_lit(&mut self, literal: &'ast syn::ExprLit) {
        let syn::Lit::Int(number) = &literal.lit else {
            return;
        };
        let Ok(value) = number.base10_parse::<u128>() else {
            return;
        };
        let span = literal.span().byte_range();
        let around = |function| Point::around(&span, &format!("{}, ", call(function)), ")");
        self.add(Kind::Number, literal, format!("{}", value + 1), around("more"));
        if value > 0 {
            self.add(Kind::Number, literal, format!("{}", value - 1), around("less"));
        }
    }

    fn visit_expr_call(&mut self, call_of: &'ast syn::ExprCall) {
        if let Expr::Path(function) = &*call_of.func
            && function.path.is_ident("Some")
        {
            let before = format!("(if {}) {{ None }} else {{ ", call("is"));
            let edits = Point::around(&call_of.span().byte_range(), &before, " })");
            self.add(Kind::Some, call_of, "None".into(), edits);
        }
        visit::visit_expr_call(self, call_of);
    }

    fn visit_expr_repeat(&mut self, repeat: &'ast syn::ExprRepeat) {
        self.visit_expr(&repeat.expr);
    }

    fn visit_local(&mut self, local: &'ast syn::Local) {
        if !left_out(&local.attrs) {
            visit::visit_local(self, local);
        }
    }

    fn visit_expr_unsafe(&mut self, _: &'ast syn::ExprUnsafe) {}
    fn visit_expr_const(&mut self, _: &'ast syn::ExprConst) {}
    fn visit_item_const(&mut self, _: &'ast syn::ItemConst) {}
    fn visit_impl_item_const(&mut self, _: &'ast syn::ImplItemConst) {}
    fn visit_trait_item_const(&mut self, _: &'ast syn::TraitItemConst) {}
    fn visit_item_static(&mut self, _: &'ast syn::ItemStatic) {}
    fn visit_variant(&mut self, _: &'ast syn::Variant) {}
    fn visit_macro(&mut self, _: &'ast syn::Macro) {}
    fn visit_pat(&mut self, _: &'ast syn::Pat) {}
    fn visit_type(&mut self, _: &'ast syn::Type) {}
    fn visit_angle_bracketed_generic_arguments(&mut self, _: &'ast syn::AngleBracketedGenericArguments) {}
    fn visit_attribute(&mut self, _: &'ast syn::Attribute) {}
}
