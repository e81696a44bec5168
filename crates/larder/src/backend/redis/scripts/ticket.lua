return { inc, tostring(pos) }
