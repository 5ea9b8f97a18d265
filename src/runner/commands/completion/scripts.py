"""The scripts that make a shell ask for candidates. Each gives the line up to the cursor to the program that the line names."""

from __future__ import annotations

BASH = r"""
_runner() {
    local line=${COMP_LINE:0:COMP_POINT} program=("${1/#\~/$HOME}") word candidate
    [[ $line == *" -m runner "* ]] && program+=(-m runner)
    word=${line##*[[:space:]]}
    COMPREPLY=()
    while IFS= read -r candidate; do
        printf -v candidate %q "${candidate#"${word%"${word##*[=:]}"}"}"  # bash replaces what follows = or :
        COMPREPLY+=("$candidate")
    done < <("${program[@]}" completion candidates "$line" 2>/dev/null)
    [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *[=./] ]] && compopt -o nospace
}
_runner_python() {
    if [[ ${COMP_LINE:0:COMP_POINT} == *" -m runner "* ]]; then
        _runner "$@"
    elif [[ -n $_runner_python_before ]]; then
        "$_runner_python_before" "$@"
    fi
}
complete -F _runner runner
{ _comp_load python || _completion_loader python; } >/dev/null 2>&1  # what bash-completion has for python, if it is there
if [[ $(complete -p python 2>/dev/null) =~ -F\ ([^ ]+) && ${BASH_REMATCH[1]} != _runner_python ]]; then
    _runner_python_before=${BASH_REMATCH[1]}
fi
complete -o bashdefault -o default -F _runner_python python python3
"""

ZSH = r"""
_runner() {
    local line="${(j: :)words[1,CURRENT-1]} $PREFIX" candidate
    local -a program open closed
    program=(${(Q)words[1]/#\~\//$HOME/})
    [[ $line == *" -m runner "* ]] && program+=(-m runner)
    for candidate in ${(f)"$($program completion candidates "$line" 2>/dev/null)"}; do
        if [[ $candidate == *[=./] ]]; then open+=($candidate); else closed+=($candidate); fi
    done
    compadd -S '' -- $open
    compadd -- $closed
}
_runner_python() {
    if [[ "${(j: :)words[1,CURRENT-1]} " == *" -m runner "* ]]; then
        _runner
    else
        ${_runner_python_before:-_default}
    fi
}
[[ ${_comps[python]-} == _runner_python ]] || _runner_python_before=${_comps[python]-}
compdef _runner runner
compdef _runner_python python python3
"""

FISH = r"""
function __runner_candidates
    set -l line (commandline -cp)
    set -l program (string replace -r '^~/' $HOME/ -- (commandline -op)[1])
    string match -q -- '* -m runner *' $line; and set -a program -m runner
    $program completion candidates $line 2>/dev/null
end
complete -c runner -f -a '(__runner_candidates)'
for program in python python3
    complete -c $program -n "string match -q -- '* -m runner *' (commandline -cp)" -f -a '(__runner_candidates)'
end
"""

SCRIPTS = {"bash": BASH.lstrip(), "zsh": ZSH.lstrip(), "fish": FISH.lstrip()}
"""Text of the script by the name of the shell."""
