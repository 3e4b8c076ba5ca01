"""Checks a text, and then the check: each of the text's breakages must be noticed."""


def check(what, text, complaints, breakages):
    """`complaints(text)` says what is wrong, in words. A breakage is what it breaks, a part of the text, and its new form."""
    found = list(complaints(text))
    print(f"{'FAIL' if found else 'ok  '} {what}")
    for complaint in found:
        print(f"       {complaint}")
    ok = not found
    for broken, old, new in breakages:
        changed = text.replace(old, new)
        if changed == text or not any(complaints(changed)):
            print(f"FAIL goes unnoticed in {what}: {broken}")
            ok = False
    return ok
